"""Qwen2.5-VL (3B, 7B, 32B, 72B; arXiv 2502.13923): seconds are told by positions alone."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from transformers import PretrainedConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from vidbridge.backbones.base import Backbone
from vidbridge.backbones.mrope import mrope_positions
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip


class Qwen2_5_VL(Backbone):
    """A video is one run of tokens, one for each merged patch; so is an image."""

    model_class = Qwen2_5_VLForConditionalGeneration
    norm_class = Qwen2_5_VLRMSNorm
    card_note = """Its rotary positions are those of Qwen2.5-VL's training (transformers 4.49.0, vLLM): text after a
video goes on from the largest position in it. transformers since 5.3 places it elsewhere: evaluate with vLLM, or pass
``position_ids``."""

    def video_ids(
        self, config: PretrainedConfig, tokens: ChatTokens, clip: Clip, grid: Sequence[int]
    ) -> Sequence[int]:
        time, height, width = grid
        return [config.video_token_id] * (time * height * width // config.vision_config.spatial_merge_size**2)

    def positions(
        self, config: PretrainedConfig, input_ids: torch.Tensor, grids: torch.Tensor, clips: Sequence[Clip]
    ) -> tuple[torch.Tensor, int]:
        vision = config.vision_config
        return mrope_positions(
            input_ids,
            grids,
            [vision.temporal_patch_size / frames_per_second(clip) for clip in clips],
            vision_token_ids=self.vision_token_ids(config),
            merge_size=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second,
        )

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put the text settings at the top and the rope settings into rope_theta and rope_scaling.

        transformers 4.49 knows no text_config, and none before 5 knows rope_parameters. Version 5 reads both forms.
        """
        text = dict(content["text_config"])
        rope = text.pop("rope_parameters")
        scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "rope_type", "type")}
        # "mrope" is what these versions call the default with three positions a token
        kind = rope.get("rope_type", "default")
        scaling["type"] = "mrope" if kind == "default" else kind
        text |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
        dtype = content.get("dtype", text.get("dtype"))
        for name in ("dtype", "model_type"):
            text.pop(name, None)
        outer = {name: value for name, value in content.items() if name not in ("text_config", "dtype")}
        return {**text, **outer, "torch_dtype": dtype}


def frames_per_second(clip: Clip) -> float:
    """Return the sampling rate of a clip by its frame times; 1.0 for a single frame, whose rate has no meaning.

    Rounded, because the temporal positions are truncated to integers and 1.9999999 fps would shift them.
    """
    if len(clip.times_s) < 2:
        return 1.0
    span_s = float(clip.times_s[-1] - clip.times_s[0])
    if span_s <= 0:
        raise ValueError(f"the frame times of a clip must increase, got {clip.times_s.tolist()}")
    return round((len(clip.times_s) - 1) / span_s, 6)


BACKBONE = Qwen2_5_VL()
