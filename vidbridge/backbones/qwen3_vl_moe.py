"""Qwen3-VL with a mixture of experts (30B-A3B, 235B-A22B): the dense model with another MLP."""

from __future__ import annotations

from transformers import Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

from vidbridge.backbones.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    """The router chooses experts for each token by itself, so sharing prompts changes nothing for it."""

    model_class = Qwen3VLMoeForConditionalGeneration
    norm_class = Qwen3VLMoeTextRMSNorm
    can_be_captured = False  # the library's loop over experts asks which of them were chosen


BACKBONE = Qwen3VLMoe()
