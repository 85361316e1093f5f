"""The families of video language models that can be trained: one file each, named as ``model_type`` in config.json.

Everything that differs between families is behind ``base.Backbone``. The other files here are what families share.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from vidbridge.backbones.base import Backbone

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")


@lru_cache(maxsize=None)
def backbone_of(model_type: str) -> Backbone:
    """Return the family; ValueError names those there are. A family is imported when it is first asked for."""
    if model_type not in FAMILIES:
        raise ValueError(f"a model of type {model_type!r} is not supported; these are: {', '.join(FAMILIES)}")
    backbone = import_module(f"{__name__}.{model_type}").BACKBONE
    assert isinstance(backbone, Backbone)
    return backbone
