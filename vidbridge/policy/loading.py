"""A model from a folder or the hub, ready to train: the same path for a toy and for 72B."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, Sequence

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from vidbridge.backbones import backbone_of
from vidbridge.policy.adapters import LoraConfig, add_adapters
from vidbridge.policy.model_folder import base_of, read_config, read_json
from vidbridge.policy.parts import freeze
from vidbridge.runtime import collectives

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    frozen: Sequence[str] = (),
    adapter: LoraConfig | None = None,
    gradient_checkpointing: bool = False,
    device: str = "auto",
    divided: bool = False,
) -> PreTrainedModel:
    """The model at ``path`` (local folder or hub id) on ``device`` ("auto": the rank's GPU if there is one).

    ``frozen`` names parts as in parts.py. With an ``adapter``, or where ``path`` is a PEFT folder, the adapters alone
    are trained. ValueError for a bad path, dtype, device or part, for weights that cannot be read or leave a part of
    the model without any, and for an attention that is not installed. With ``divided`` the weights wait in the memory
    of the CPU, for an engine that gives each rank its part.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    target = resolve_device(device)
    base = base_of(path)
    backbone = backbone_of(read_config(base).model_type)
    read_json(base, "model.safetensors.index.json")  # named here if it is no JSON
    try:
        with _without_load_report():
            model, found = backbone.model_class.from_pretrained(
                base,
                dtype=DTYPES[dtype],
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
    except ImportError as error:
        raise ValueError(f"cannot load a model with attn_implementation={attn_implementation}: {error}") from error
    except SafetensorError as error:
        files = ", ".join(damaged_weights(base)) or base
        raise ValueError(f"cannot read the weights in {files}: {error}") from error
    except (OSError, ValueError) as error:  # a shard that is not there, for one
        raise ValueError(f"cannot load a model from {base!r}: {error}") from error
    check_covered(base, found)
    add_adapters(model, adapter, path, frozen)
    freeze(model, frozen)
    backbone.prepare(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return buffers_to(model, target) if divided else model.to(target)


def buffers_to(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return ``model`` with all on ``device`` but its weights."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return model


def resolve_device(device: str) -> torch.device:
    """ValueError for a device that does not exist or is not there."""
    if device == "auto":
        device = f"cuda:{collectives.local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # what torch raises differs from build to build
        raise ValueError(f"model.device={device} cannot be used here: {str(error).splitlines()[0]}") from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Leave out the table in which transformers lists the weights that do not fit: ``check_covered`` tells of them."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in ("LOAD REPORT", "seem corrupted"))

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def check_covered(path: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that leave a part of the model as it was initialised; ``found``: transformers' loading info.

    ValueError names the first weights that are missing or of another shape. What is there and not needed is told in a
    line. An lm_head tied to the embedding is never missing.
    """
    if misfits := sorted(found["mismatched_keys"]):
        name, there, wanted = misfits[0]
        more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise ValueError(
            f"the weights at {path!r} do not fit its config.json: {name} is {_shape(there)} in the file, "
            f"{_shape(wanted)} by the configuration{more}"
        )
    missing, unexpected = found["missing_keys"], found["unexpected_keys"]
    if missing:
        raise ValueError(
            f"the weights at {path!r} do not cover the model: they lack {_first(missing)}, which would be random. "
            f"{_hint(missing, unexpected)}"
        )
    if unexpected and collectives.is_rank_0():
        log.warning("not used of the weights at %r: %s", path, _first(unexpected))


def _hint(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Guess from the names how such a file came about."""
    if set(missing) == {"lm_head.weight"}:
        return "Is it the embedding? Then config.json must say tie_word_embeddings=true"
    if not unexpected:
        return "Was the file saved from a part of the model, or cut by hand?"
    if any("lora_" in name for name in unexpected):
        return "There are weights of an adapter (lora_): merge it into its model first (peft: merge_and_unload)"
    if any(name.endswith(("qweight", "weight_packed", "weight_scale", "absmax")) for name in unexpected):
        return "There are quantised weights: take the full-precision model"
    prefix = os.path.commonprefix(sorted(unexpected)).rpartition(".")[0]
    if prefix and len(unexpected) > 1:
        return f"All names that are not known begin with {prefix + '.'!r}: saved from inside a wrapper? Take that away"
    return f"There are {_first(unexpected)} instead"


def _first(names: Collection[str]) -> str:
    """
    >>> _first({"d", "c", "b", "a"})
    'a, b, c and 1 more'
    """
    shown = ", ".join(sorted(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def damaged_weights(path: str) -> list[str]:
    """The files of weights in a folder that cannot be opened."""
    damaged = []
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            safe_open(file, framework="pt")
        except SafetensorError:
            damaged.append(str(file))
    return damaged
