"""Parts of a model by the start of their names, with or without "model.": "visual", "language_model.embed_tokens"."""

from __future__ import annotations

from typing import Sequence

from torch import nn


def is_within(name: str, parts: Sequence[str]) -> bool:
    """Return whether a weight or layer belongs to one of the parts.

    >>> is_within("model.visual.blocks.0.attn.qkv", ["visual"]), is_within("model.visual_2.weight", ["visual"])
    (True, False)
    """
    inner = name.removeprefix("model.") + "."
    return any(inner.startswith(part.removeprefix("model.") + ".") for part in parts)


def check_parts(model: nn.Module, parts: Sequence[str], what: str) -> None:
    """ValueError that begins with ``what`` and names the parts there are, when the model lacks one of these."""
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(is_within(name, [part]) for name in names):
            known = sorted({name.removeprefix("model.").split(".")[0] for name in names})
            raise ValueError(f"{what} {part!r}: the model has no such part; it has {', '.join(known)}")


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Stop the gradients of the named parts; ValueError names the parts there are when one is unknown."""
    check_parts(model, parts, "cannot freeze")
    for name, weight in model.named_parameters():
        if is_within(name, parts):
            weight.requires_grad_(False)
