"""The files of a model beside its weights, in every layout that its family has been saved in.

The layout has changed with transformers: text settings stand at the top of config.json (the released models, 4.49) or
under text_config (from 4.52), preprocessing numbers in preprocessor_config.json (images) and
video_preprocessor_config.json, or in sections of one processor_config.json (5). All are read. What is written is the
layout of the released models, because every version of transformers reads that one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.utils import cached_file

from vidbridge.backbones import backbone_of

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# Preprocessing numbers: the file of each kind, and its section in PROCESSOR. Where both speak, videos win.
SECTIONS = {"preprocessor_config.json": "image_processor", "video_preprocessor_config.json": "video_processor"}
PROCESSOR = "processor_config.json"
TOKENIZER = "tokenizer_config.json"


def read_json(path: str, name: str) -> dict[str, Any] | None:
    """One file of a model, None when it has no such file; ValueError names a file that is not JSON."""
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    try:
        content = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{found} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{found} must hold a JSON object")
    return content


def base_of(path: str) -> str:
    """Return the model that the adapters in a PEFT folder belong to; ``path`` itself if it is no such folder.

    ValueError when that model is not where adapter_config.json says.
    """
    if not (Path(path) / ADAPTER).is_file() or (Path(path) / CONFIG).is_file():
        return path
    base = (read_json(path, ADAPTER) or {}).get("base_model_name_or_path")
    if not base or (Path(base).is_absolute() and not Path(base).exists()):
        raise ValueError(f"{Path(path) / ADAPTER}: base_model_name_or_path is {base!r}: set it to where the model is")
    return str(base)


def read_config(path: str) -> PretrainedConfig:
    """Return the configuration of the model at a local folder or hub id.

    ValueError in plain words when there is none, for an adapter beside it or in its place, for another family of
    models, and for quantised weights.
    """
    try:
        adapter, content = read_json(path, ADAPTER), read_json(path, CONFIG)
    except OSError:
        adapter, content = None, None
    if adapter is not None:
        base = adapter.get("base_model_name_or_path")
        raise ValueError(
            f"{path!r} holds an adapter ({ADAPTER}) of {base!r}: merge it into that model first (peft: "
            f"merge_and_unload, then save_pretrained into a new folder), take {ADAPTER} away if that is done, "
            f"or download it, if it is alone, into a folder"
        )
    if content is None:
        raise ValueError(
            f"cannot load a model from {path!r}: it is neither a folder with a {CONFIG} "
            f"nor a hub id that can be reached from here"
        )
    try:
        config_class = backbone_of(content.get("model_type")).model_class.config_class
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    if quantised := content.get("quantization_config"):
        method = quantised.get("quant_method", "bitsandbytes")
        raise ValueError(
            f"{path!r} is quantised ({method}), which cannot be trained, nor can adapters of it (QLoRA: "
            f"docs/adapters.md says why): take the full-precision model"
        )
    try:
        return config_class.from_dict(content)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{CONFIG} of {path!r} cannot be used: {error}") from error


def read_preprocessing(path: str) -> dict[str, dict[str, Any]]:
    """Return {file of SECTIONS: its numbers}; ValueError when there are none.

    A section of processor_config.json wins over the file, as in transformers.
    """
    processor = read_json(path, PROCESSOR) or {}
    found = {name: processor.get(section) or read_json(path, name) for name, section in SECTIONS.items()}
    numbers = {name: content for name, content in found.items() if content is not None}
    if not numbers:
        raise ValueError(f"{path!r} has no preprocessor_config.json, and no image_processor in a {PROCESSOR}")
    return numbers


def write_preprocessing(path: Path, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the files of SECTIONS; how large frames may be as ``size``, and as min_pixels and max_pixels for 4.49."""
    for name, content in numbers.items():
        size = {"shortest_edge": content.get("min_pixels"), "longest_edge": content.get("max_pixels")}
        size |= content.get("size") or {}
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        if None not in pixels.values():
            content = {**content, "size": size, **pixels}
        _write_json(path / name, content)


def rewrite_config(path: Path, dtype: torch.dtype) -> None:
    """Rewrite the config.json that transformers 5 has saved at ``path`` as the family's released models have it.

    It says that the weights are of ``dtype``.
    """
    content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    for section in (content, *(content[name] for name in ("text_config", "vision_config"))):
        if "dtype" in section:
            section["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(path / CONFIG, backbone_of(content["model_type"]).released_config(content))


def rename_tokenizer_keys(path: Path) -> None:
    """Rewrite the tokenizer_config.json that transformers 5 has saved at ``path`` with names that 4 knows too.

    A list of extra_special_tokens ends its from_pretrained in an error, and TokenizersBackend is unknown to it.
    """
    content = json.loads((path / TOKENIZER).read_text(encoding="utf-8"))
    if isinstance(extra := content.get("extra_special_tokens"), list):
        del content["extra_special_tokens"]
        content["additional_special_tokens"] = extra
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(path / TOKENIZER, content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
