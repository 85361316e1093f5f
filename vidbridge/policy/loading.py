"""A Qwen2.5-VL checkpoint, from a folder or the hub, ready to train: the same path for a toy and for 72B."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from vidbridge import dist
from vidbridge.policy.attention import enable_shared_prefix
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
    """The model at ``path`` (local folder or hub id) on ``device`` ("auto": the rank's GPU if there is one).

    ``frozen`` names parts by the start of their parameters' names, with or without "model.": "visual",
    "visual.merger", "language_model.embed_tokens". ValueError for a bad path, dtype, device or part, for weights that
    cannot be read and an attention that is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    place = resolve_device(device)
    read_config(path)
    try:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation=attn_implementation
        )
    except ImportError as error:
        raise ValueError(f"attn_implementation={attn_implementation} cannot be used: {error}") from error
    except SafetensorError as error:
        files = ", ".join(damaged_weights(path)) or path
        raise ValueError(f"cannot read the weights in {files}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot load a model from {path!r}: {error}") from error
    freeze(model, frozen)
    embed_patches_by_matmul(model)
    enable_shared_prefix(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(place)


def resolve_device(device: str) -> torch.device:
    """ValueError for a device that does not exist or is not there."""
    if device == "auto":
        device = f"cuda:{dist.local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # what torch raises differs from build to build
        raise ValueError(f"model.device={device} cannot be used here: {str(error).splitlines()[0]}") from error


def damaged_weights(path: str) -> list[str]:
    """The files of weights in a folder that cannot be opened."""
    damaged = []
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            safe_open(file, framework="pt")
        except SafetensorError:
            damaged.append(str(file))
    return damaged


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
