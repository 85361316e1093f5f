"""Qwen3-VL with a mixture of experts (30B-A3B, 235B-A22B): the dense model with another MLP."""

from __future__ import annotations

from typing import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

from vidbridge.backbones.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    """The router chooses experts for each token by itself, so sharing prompts changes nothing for it."""

    model_class = Qwen3VLMoeForConditionalGeneration
    norm_class = Qwen3VLMoeTextRMSNorm
    can_be_captured = False  # some of the library's ways to compute experts ask the host which were chosen

    def routers(self, module: nn.Module) -> Sequence[nn.Module]:
        return [layer.mlp.gate for layer in self.text_model(module).layers if hasattr(layer.mlp, "gate")]

    def mlp_width(self, config: PretrainedConfig) -> int:
        width: int = config.text_config.num_experts_per_tok * config.text_config.moe_intermediate_size
        return width

    def active_weights(self, module: PreTrainedModel) -> float:
        text = module.config.text_config
        idle = 1 - text.num_experts_per_tok / text.num_experts
        layers = self.text_model(module).layers
        of_experts = sum(weight.numel() for name, weight in layers.named_parameters() if ".experts." in name)
        return super().active_weights(module) - idle * of_experts


BACKBONE = Qwen3VLMoe()
