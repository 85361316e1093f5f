"""Qwen3.5, dense (9B, 27B and smaller): three of four layers keep a state instead of keys and values."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from transformers import PreTrainedModel, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

from vidbridge.backbones.attention_interface import Attends
from vidbridge.backbones.gated_delta import take_states
from vidbridge.backbones.qwen3_vl import Qwen3VL


class Qwen3_5(Qwen3VL):
    """Prompts and positions are those of Qwen3-VL; only the output of the tower reaches the layers (no DeepStack)."""

    model_class = Qwen3_5ForConditionalGeneration
    norm_class = Qwen3_5RMSNorm
    can_be_captured = False  # a step runs once before it is captured: states would be a token ahead of the keys

    def prepare(self, module: PreTrainedModel) -> None:
        super().prepare(module)
        for layer in self.text_model(module).layers:
            if layer.block_type == "linear_attention":
                take_states(layer.linear_attn)

    def for_layers(self, seen: Any, is_vision: torch.Tensor) -> Mapping[str, Any]:
        return {}

    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        model = self.text_model(module)
        return model(
            inputs_embeds=model.embed_tokens(token_ids)[:, None],
            position_ids=positions[None, :, None].expand(3, -1, -1),
            use_cache=False,
            shared_prefix=attention,
        ).last_hidden_state[:, 0]

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the content as it is: the family was released for transformers 5."""
        return content


BACKBONE = Qwen3_5()
