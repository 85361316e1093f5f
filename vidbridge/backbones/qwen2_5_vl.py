"""Qwen2.5-VL (3B, 7B, 32B, 72B; arXiv 2502.13923).

Its rotary positions (mRoPE: one position each for time, height and width) follow the rule of transformers 4.49.0, the
first release with the model; vLLM follows it too. Later releases of transformers changed it: from 5.3 on the text after
a video begins inside the time axis of the video, and some releases cut fractions of seconds. So the installed library
must not be asked for positions.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from vidbridge.backbones import layers
from vidbridge.backbones.attention_interface import Attends, use_our_attention
from vidbridge.backbones.base import Backbone
from vidbridge.backbones.patches import embed_patches_by_matmul, patchify
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip


class Qwen2_5_VL(Backbone):
    """A video is one run of tokens, one for each merged patch; seconds are told by positions alone."""

    model_class = Qwen2_5_VLForConditionalGeneration
    card_note = """Its rotary positions are those of Qwen2.5-VL's training (transformers 4.49.0, vLLM): text after a
video goes on from the largest position in it. transformers since 5.3 places it elsewhere: evaluate with vLLM, or pass
``position_ids``."""

    def patchify(self, frames: np.ndarray, **numbers: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        return patchify(frames, **numbers)

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
            video_token_id=config.video_token_id,
            merge_size=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second,
        )

    def prepare(self, module: PreTrainedModel) -> None:
        embed_patches_by_matmul(self.vision_tower(module).get_submodule("patch_embed.proj"))
        use_our_attention(self.text_model(module), self.vision_tower(module))

    def hidden(
        self,
        module: PreTrainedModel,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        grids: torch.Tensor,
        position_ids: torch.Tensor,
        attention: Attends,
    ) -> torch.Tensor:
        embeddings = module.get_input_embeddings()(input_ids)
        if len(grids):
            features = torch.cat(module.get_video_features(pixel_values, grids).pooler_output)
            is_video = (input_ids == module.config.video_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(is_video, features.to(embeddings.dtype))
        return self.text_model(module)(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            attention_mask=dict.fromkeys(("full_attention", "sliding_attention")),  # None: nobody builds a mask
            use_cache=False,
            shared_prefix=attention,
        ).last_hidden_state

    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        return layers.next_hidden(self.text_model(module), Qwen2_5_VLRMSNorm, token_ids, positions, attention)

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


def mrope_positions(
    input_ids: torch.Tensor,
    video_grid_thw: torch.Tensor,
    seconds_per_grid: Sequence[float],
    *,
    video_token_id: int,
    merge_size: int,
    tokens_per_second: float,
) -> tuple[torch.Tensor, int]:
    """Return positions [3, L] int64 and the rope delta: the first completion token's position is L + delta.

    input_ids [L] holds, for each row (t, h, w) of video_grid_thw [V, 3], one run of t * h * w / merge_size**2 video
    tokens. ``seconds_per_grid`` [V] is the time between two grids (temporal patches) of each video.

    - A text token is one further than the largest position before it, on all three axes.
    - A video begins one further than the largest position before it. From there, token (i, y, x) lies
      floor(i * seconds_per_grid * tokens_per_second) further in time, y in height and x in width.
    """
    pieces: list[torch.Tensor] = []
    read = start = 0  # tokens done; one further than the largest position so far

    def add_text(end: int) -> None:
        nonlocal read, start
        pieces.append((start + torch.arange(end - read)).expand(3, -1))
        start, read = start + end - read, end

    ids = input_ids.tolist()
    for (grid_t, grid_h, grid_w), seconds in zip(video_grid_thw.tolist(), seconds_per_grid, strict=True):
        add_text(ids.index(video_token_id, read))
        # multiplied one after the other in 32 bits, as the model's own code does: other roundings, other integers
        time = (torch.arange(grid_t) * torch.tensor(seconds, dtype=torch.float32) * tokens_per_second).long()
        height, width = torch.arange(grid_h // merge_size), torch.arange(grid_w // merge_size)
        pieces.append(start + torch.stack(torch.meshgrid(time, height, width, indexing="ij")).flatten(1))
        start, read = int(pieces[-1].max()) + 1, read + pieces[-1].shape[1]
    add_text(len(ids))
    return torch.cat(pieces, dim=1), start - len(ids)


BACKBONE = Qwen2_5_VL()
