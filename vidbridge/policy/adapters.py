"""Adapters (LoRA, arXiv 2106.09685) by peft: thin matrices beside frozen layers, which alone are trained.

A layer W becomes a peft layer that computes W x + alpha / rank * B A x; the class of the model and all names but the
layer's own stay. Everything that runs the model, learner and sampler alike, must therefore call its layers: a layer's
``weight`` is that of the frozen one. peft is imported only where there is an adapter: it takes seconds.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vidbridge.config.checks import require, require_positive
from vidbridge.config.schema import FREE
from vidbridge.policy.model_folder import ADAPTER, base_of, read_json
from vidbridge.policy.parts import check_parts, is_within

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of the names in a PEFT folder
_FROZEN = ".base_layer."  # in the name of a weight that has an adapter beside it


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The keys of model/adapter=lora."""

    rank: int = 8
    alpha: float = 16.0  # what an adapter adds is multiplied by alpha / rank
    targets: Sequence[str] = ("language_model",)  # parts whose linear layers get an adapter, named as in model.frozen
    merged: bool = field(default=False, metadata=FREE)  # save the model with its adapters added to the weights

    def __post_init__(self) -> None:
        require_positive("model.adapter", self, "rank", "alpha")
        require(bool(self.targets), "model.adapter.targets must name at least one part, such as language_model")

    def add_to(self, module: PreTrainedModel, frozen: Sequence[str] = ()) -> None:
        """Freeze ``module`` and put new adapters beside its linear layers in ``targets`` that are not in ``frozen``.

        They change nothing yet: B is 0. A is drawn by torch's seed, whatever was drawn before, so that all ranks have
        the same. ValueError names a target that the model does not have or that can have no adapter.
        """
        import peft

        check_parts(module, self.targets, "model.adapter.targets: cannot adapt")
        names = []
        for target in self.targets:
            found = [name for name, layer in module.named_modules() if is_within(name, [target]) and _can_adapt(layer)]
            if "lm_head" in found or not found:
                told = "lm_head gives the logits by its own weight" if found else "there is no linear layer in it"
                raise ValueError(f"model.adapter.targets: {target!r} can have no adapter: {told}")
            names += [name for name in found if not is_within(name, frozen)]
        if not names:
            raise ValueError(f"model.frozen={list(frozen)} leaves no layer of model.adapter.targets to adapt")
        path = Path(module.name_or_path)
        settings = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=names,  # in full: a bare gate_proj is in the vision tower too
            base_model_name_or_path=str(path.resolve() if path.exists() else path),  # of a hub id itself
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            peft.inject_adapter_in_model(settings, module)


def _can_adapt(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear


def add_adapters(
    module: PreTrainedModel, lora: LoraConfig | None, path: str, frozen: Sequence[str], *, weights: bool = True
) -> None:
    """Put those that ``lora`` says on ``module``, or those of ``path`` where it is a PEFT folder, or none.

    Without ``weights`` they need not be in the folder: new ones of their sizes take their place.
    """
    base = base_of(path)
    if lora is not None and base != path:
        raise ValueError(f"{path!r} is an adapter already, of {base!r}: leave model/adapter out to train it on")
    if lora is not None:
        lora.add_to(module, frozen)
    elif base != path:
        _load(module, Path(path), weights=weights)


def has_adapters(module: nn.Module) -> bool:
    return hasattr(module, "peft_config")


def is_of_adapter(name: str) -> bool:
    """Return whether a weight of this name is one of an adapter, not of the model beneath."""
    return ".lora_" in name


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """Return the layers that have an adapter, peft's objects by name."""
    if not has_adapters(module):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Let ``module`` compute what its frozen weights alone compute; without adapters, what it computes anyway."""
    layers = adapted_layers(module).values()
    # not by peft's enable_adapters, which changes what is trained too
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


Gathered = Callable[[Sequence[nn.Parameter]], ContextManager[Any]]  # within it these weights are whole


@torch.no_grad()
def merged_weights(
    module: nn.Module, gathered: Gathered = lambda weights: nullcontext()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight by its name in the model without adapters, with what its adapter adds; a tied one once.

    Added in 32 bits and rounded to the weight's own type: in 16 bits that loses what is small beside the weight. Where
    ranks divide the weights, ``gathered`` makes those of one layer whole at a time, until the next is asked for.
    """
    layers = adapted_layers(module)
    for name, weight in module.named_parameters():
        if is_of_adapter(name):
            continue
        layer = layers.get(name.removesuffix(f"{_FROZEN}weight")) if name.endswith(f"{_FROZEN}weight") else None
        if layer is None:
            with gathered([weight]):
                yield name.replace(_FROZEN, "."), weight.detach()
        else:
            (key,) = layer.active_adapters
            up, down = layer.lora_B[key].weight, layer.lora_A[key].weight
            with gathered([weight, up, down]):
                merged = weight.float() + layer.scaling[key] * (up.float() @ down.float())
                yield name.replace(_FROZEN, "."), merged.to(weight.dtype)


def save_adapters(module: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a PEFT folder: what ``peft.PeftModel.from_pretrained(base, folder)`` reads."""
    import peft

    (settings,) = module.peft_config.values()
    settings.save_pretrained(folder)
    weights = peft.get_peft_model_state_dict(module, save_embedding_layers=False)
    tensors = {_PREFIX + name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _load(module: PreTrainedModel, folder: Path, *, weights: bool) -> None:
    """Freeze ``module`` and put the adapters of a PEFT folder beside its layers, to be trained on.

    Their dropout is left out: the learner would not compute what the sampler samples from. ValueError for what is no
    LoRA of linear layers, and for weights that do not fit.
    """
    import peft

    told = read_json(str(folder), ADAPTER) or {}
    if told.get("peft_type") != "LORA" or told.get("modules_to_save") or told.get("bias", "none") != "none":
        raise ValueError(f"{folder / ADAPTER} is no plain LoRA: merge it into its model first (peft: merge_and_unload)")
    settings = peft.LoraConfig.from_pretrained(str(folder))
    settings.inference_mode, settings.lora_dropout = False, 0.0
    peft.inject_adapter_in_model(settings, module)
    for name, layer in adapted_layers(module).items():
        if name == "lm_head" or not _can_adapt(layer.get_base_layer()) or layer.lora_variant or settings.lora_bias:
            raise ValueError(f"{folder / ADAPTER} adapts {name} in a way that is not supported: merge it first")
    if weights:
        _read_weights(module, folder / WEIGHTS)


def _read_weights(module: PreTrainedModel, path: Path) -> None:
    import peft

    try:
        found = peft.set_peft_model_state_dict(module, load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        told = " ".join(str(error).split("\n\t")[:2])  # of sizes that do not fit the first
        raise ValueError(f"cannot read the adapters in {path}: {told}") from error
    lacking = [name for name in found.missing_keys if is_of_adapter(name)]
    if lacking or found.unexpected_keys:
        told = f"it lacks {lacking[0]}" if lacking else f"{found.unexpected_keys[0]} has no place in the model"
        raise ValueError(f"the adapters in {path} do not fit their {ADAPTER}: {told}")
