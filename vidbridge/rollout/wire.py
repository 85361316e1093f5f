"""What a rollout server is told and says: tensors as safetensors has them, everything else as JSON beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vidbridge.types import EncodedPrompt, SamplingParams

GENERATE, STATE, BEGIN, PART, END = "/generate", "/state", "/weights/begin", "/weights/part", "/weights/end"
OTHER_WEIGHTS = 409  # the status of a request about weights that the server does not have
_TENSORS = ("input_ids", "position_ids", "pixel_values", "grid_thw")


def identity(config: Any) -> dict[str, Any]:
    """Return what tells a model from another one whose weights do not fit; of a Hugging Face configuration."""
    text = config.text_config
    numbers = {name: getattr(text, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    return {"model_type": config.model_type, **numbers}


def pack(told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """Return one message."""
    there = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    return save(there, metadata={"told": json.dumps(told)})


def told_in(message: bytes) -> dict[str, Any]:
    """Return what a message says beside its tensors, which are not read. ValueError for what ``pack`` has not made."""
    try:
        length = int.from_bytes(message[:8], "little")
        told: dict[str, Any] = json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["told"])
        return told
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no message of vidbridge: {error}") from error


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what ``pack`` was given. ValueError for bytes that it has not made."""
    try:
        return told_in(message), load(message)
    except SafetensorError as error:
        raise ValueError(f"no message of vidbridge: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to be completed, by one version of the weights."""

    version: str
    prompt: EncodedPrompt
    group_size: int
    sampling: SamplingParams
    seed: int
    index: int
    suppressed_ids: torch.Tensor  # [K] int64

    def pack(self) -> bytes:
        told = {
            "version": self.version,
            "uid": self.prompt.uid,
            "rope_delta": self.prompt.rope_delta,
            "group_size": self.group_size,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "index": self.index,
        }
        tensors = {name: getattr(self.prompt, name) for name in _TENSORS}
        return pack(told, {**tensors, "suppressed_ids": self.suppressed_ids})

    @classmethod
    def unpack(cls, message: bytes) -> Request:
        """Return what was packed. ValueError where something is missing or out of its range."""
        told, tensors = unpack(message)
        try:
            sampling = told.pop("sampling")
            prompt = EncodedPrompt(
                **{name: tensors[name] for name in _TENSORS}, rope_delta=told.pop("rope_delta"), uid=told.pop("uid")
            )
            return cls(
                prompt=prompt,
                sampling=SamplingParams(**{**sampling, "stop": tuple(sampling["stop"])}),
                suppressed_ids=tensors["suppressed_ids"],
                **told,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no request for completions: {error!r}") from error
