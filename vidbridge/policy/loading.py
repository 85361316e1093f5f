"""A Qwen2.5-VL checkpoint, from a folder or the hub, ready to train: the same path for a toy and for 72B."""

from __future__ import annotations

from types import MethodType
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from vidbridge.policy.processor import read_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    frozen: Sequence[str] = (),
    gradient_checkpointing: bool = False,
    device: str = "auto",
) -> Qwen2_5_VLForConditionalGeneration:
    """The model at ``path`` (local folder or hub id) on ``device`` ("auto": a GPU if there is one).

    ``frozen`` names parts by the start of their parameters' names, with or without "model.": "visual",
    "visual.merger", "language_model.embed_tokens". ValueError for a bad path, dtype or part.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    read_config(path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=DTYPES[dtype], attn_implementation=attn_implementation
    )
    freeze(model, frozen)
    embed_patches_by_matmul(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(resolve_device(device))


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Stop the gradients of the named parts; ValueError names the parts there are when one is unknown."""
    weights = {name.removeprefix("model."): weight for name, weight in model.named_parameters()}
    for part in parts:
        part = part.removeprefix("model.")
        chosen = [weight for name, weight in weights.items() if name == part or name.startswith(part + ".")]
        if not chosen:
            known = sorted({name.split(".")[0] for name in weights})
            raise ValueError(f"cannot freeze {part!r}: the model has no such part; it has {', '.join(known)}")
        for weight in chosen:
            weight.requires_grad_(False)


def embed_patches_by_matmul(model: nn.Module) -> None:
    """Compute the vision tower's patch embedding as the matrix product it is.

    Its Conv3d has stride = kernel = one patch, which is slow on CPUs and in some CUDA builds. Only this module's call
    is replaced: weights, their names and the class stay as they are.
    """
    convolution = model.get_submodule("model.visual.patch_embed.proj")
    assert isinstance(convolution, nn.Conv3d) and convolution.kernel_size == convolution.stride
    assert convolution.bias is None

    def forward(self: nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1))  # [S, embedding]

    convolution.forward = MethodType(forward, convolution)  # type: ignore[method-assign]
