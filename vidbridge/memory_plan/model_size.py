"""The parts of a model that take memory, read off a model that is made without any."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig

from vidbridge.backbones import backbone_of
from vidbridge.config.schema import ModelConfig
from vidbridge.memory_plan import saved
from vidbridge.policy.adapters import add_adapters, has_adapters
from vidbridge.policy.loading import DTYPES
from vidbridge.policy.parts import freeze


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts of numbers, where nothing else is said; a tied weight counts once."""

    config: PretrainedConfig
    weights: int
    active_in_text: float  # numbers of the decoder layers that work on one token
    mlp_width: int  # inner numbers of a decoder layer's MLP that work on one token
    in_vision_blocks: int
    trained: int
    trains_vision: bool
    trains_vocabulary: bool
    has_adapters: bool  # which alone are trained then
    itemsize: int  # bytes of a weight
    text_layers: Sequence[saved.LayerKind]
    saved_vision: float  # bytes a patch that a block of the vision tower keeps
    checkpointing: bool  # gradient checkpointing

    @classmethod
    def of(cls, config: PretrainedConfig, spec: ModelConfig) -> ModelSize:
        """Return the size of a model, which is made without memory for its weights."""
        backbone, dtype = backbone_of(config.model_type), DTYPES[spec.dtype.value]
        with torch.device("meta"):
            module = backbone.model_class(copy.deepcopy(config))
            add_adapters(module, spec.adapter, spec.path, spec.frozen, weights=False)
        module.to("meta", dtype)
        freeze(module, spec.frozen)
        backbone.prepare(module)
        vision_tower = backbone.vision_tower(module)
        text_layers, saved_vision = saved.text_layers(backbone, module), saved.vision_block(backbone, module)
        return cls(
            config=config,
            weights=_numbers(module),
            active_in_text=backbone.active_weights(module),
            mlp_width=backbone.mlp_width(config),
            in_vision_blocks=_numbers(vision_tower.blocks),
            trained=sum(weight.numel() for weight in module.parameters() if weight.requires_grad),
            trains_vision=any(weight.requires_grad for weight in vision_tower.parameters()),
            trains_vocabulary=module.lm_head.weight.requires_grad,
            has_adapters=has_adapters(module),
            itemsize=dtype.itemsize,
            text_layers=text_layers,
            saved_vision=saved_vision,
            checkpointing=spec.gradient_checkpointing,
        )

    @property
    def in_vocabulary(self) -> int:
        """Return the numbers in the projection to the vocabulary; the embedding has as many."""
        return self.config.text_config.vocab_size * self.config.text_config.hidden_size

    @property
    def patch_numbers(self) -> int:
        vision = self.config.vision_config
        return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    @property
    def attending(self) -> int:
        """Return the number of decoder layers that keep keys and values; the others keep a state."""
        return sum(kind.number for kind in self.text_layers if not kind.chunk)

    @property
    def state(self) -> float:
        """Return the bytes that the recurrent layers keep of one sequence."""
        return sum(kind.number * kind.state for kind in self.text_layers)

    @property
    def query_width(self) -> int:
        """Numbers in the query of a token."""
        return self._head_size * self.config.text_config.num_attention_heads

    @property
    def key_width(self) -> int:
        """Numbers in the key of a token, and as many in its value."""
        return self._head_size * self.config.text_config.num_key_value_heads

    @property
    def _head_size(self) -> int:
        text = self.config.text_config
        return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
