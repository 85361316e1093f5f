"""Qwen3-VL, dense (2B, 4B, 8B, 32B; arXiv 2511.21631): seconds are told in words, before each pair of frames."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import torch
from transformers import PretrainedConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from vidbridge.backbones.base import Backbone
from vidbridge.backbones.mrope import mrope_positions
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip


class Qwen3VL(Backbone):
    """Each temporal patch is a picture of its own: its time as text, then its tokens between vision_start and _end.

    An image has no time. What blocks in the middle of the tower saw is added to the tokens of patches after the first
    decoder layers: DeepStack (arXiv 2406.04334).
    """

    model_class = Qwen3VLForConditionalGeneration
    norm_class = Qwen3VLTextRMSNorm

    def video_ids(
        self, config: PretrainedConfig, tokens: ChatTokens, clip: Clip, grid: Sequence[int]
    ) -> Sequence[int]:
        _, height, width = grid
        num_tokens = height * width // config.vision_config.spatial_merge_size**2
        picture = [config.vision_start_token_id, *[config.video_token_id] * num_tokens, config.vision_end_token_id]
        ids: list[int] = []
        for text in self.spelt_times(patch_times(clip, config.vision_config.temporal_patch_size)):
            ids += [*tokens.text_ids(text), *picture]
        return ids

    def spelt_times(self, times_s: Iterable[float]) -> list[str]:
        return [f"<{time_s:.1f} seconds>" for time_s in times_s]

    def positions(
        self, config: PretrainedConfig, input_ids: torch.Tensor, grids: torch.Tensor, clips: Sequence[Clip]
    ) -> tuple[torch.Tensor, int]:
        pictures = grids.repeat_interleave(grids[:, 0], dim=0)
        pictures[:, 0] = 1
        return mrope_positions(
            input_ids,
            pictures,
            [0.0] * len(pictures),
            vision_token_ids=self.vision_token_ids(config),
            merge_size=config.vision_config.spatial_merge_size,
            tokens_per_second=0,  # a picture does not last
        )

    def for_layers(self, seen: Any, is_vision: torch.Tensor) -> Mapping[str, Any]:
        features = [torch.cat(of_block) for of_block in seen.deepstack_features]
        return {"visual_pos_masks": is_vision, "deepstack_visual_embeds": features}

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put the rope settings of the text model into rope_theta and rope_scaling, as transformers 4.57 reads them."""
        text = dict(content["text_config"])
        rope = dict(text.pop("rope_parameters"))
        text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        return {**content, "text_config": text}


def patch_times(clip: Clip, temporal_patch_size: int) -> list[float]:
    """Return the seconds of each temporal patch: the mean of its first and its last frame.

    The last frame stands for those that are missing in the last patch.
    """
    times_s = [float(time_s) for time_s in clip.times_s]
    times_s += times_s[-1:] * (-len(times_s) % temporal_patch_size)
    firsts, lasts = times_s[::temporal_patch_size], times_s[temporal_patch_size - 1 :: temporal_patch_size]
    return [(first + last) / 2 for first, last in zip(firsts, lasts, strict=True)]


BACKBONE = Qwen3VL()
