"""The policy in plain Hugging Face calls: the prompt, its pixels included, once for every completion.

The oracle of tests and of check_model, and the baseline of the benchmarks.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel

from vidbridge.backbones import backbone_of
from vidbridge.policy.packing import pad_completions
from vidbridge.types import Completion, EncodedPrompt, Group


@contextmanager
def as_library(module: PreTrainedModel, attention: str = "sdpa") -> Iterator[PreTrainedModel]:
    """Run a model of ``load_model`` as ``from_pretrained`` would give it: nothing of ours is in its forward pass.

    The weights are the same tensors, so this needs no memory of its own. ``attention`` is "sdpa" or "eager".
    """
    backbone = backbone_of(module.config.model_type)
    configs = [part(module).config for part in (backbone.text_model, backbone.vision_tower)]
    ours = [config._attn_implementation for config in configs]
    # what Backbone.prepare has put before the class's own
    replaced = [(each, vars(each).pop("forward")) for each in module.modules() if "forward" in vars(each)]
    try:
        for config in configs:
            config._attn_implementation = attention
        yield module
    finally:
        for config, name in zip(configs, ours):
            config._attn_implementation = name
        for each, forward in replaced:
            vars(each)["forward"] = forward


def repeated_logits(
    module: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],  # one for each completion
    completions: Sequence[Completion],
    *,
    every_position: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N, T, V] and the ids [N, T] that they predict, each completion a full row [prompt | completion].

    Every row has its own copy of the clips. Prompts are padded left, completions right; what stands on padding means
    nothing. With ``every_position`` T covers the prompts' tokens as well.
    """
    device = module.device
    completion_ids, sampled = pad_completions(completions)
    pad_id = module.config.text_config.pad_token_id or 0
    ids, mask, positions = _left_padded(prompts, pad_id)
    first_positions = torch.tensor([len(p.input_ids) + p.rope_delta for p in prompts])[:, None]
    completion_positions = (first_positions + torch.arange(completion_ids.shape[1])).expand(3, -1, -1)
    ids = torch.cat([ids, completion_ids], dim=1).to(device)
    kept = ids.shape[1] if every_position else completion_ids.shape[1] + 1
    logits = module(
        input_ids=ids,
        attention_mask=torch.cat([mask, sampled], dim=1).long().to(device),
        position_ids=torch.cat([positions, completion_positions], dim=2).to(device),
        logits_to_keep=kept,
        use_cache=False,
        **clips_of(module.config, prompts, device),
    ).logits[:, :-1]
    return logits, ids[:, 1 - kept :]


def repeated_logprobs(
    module: PreTrainedModel,
    groups: Sequence[Group],
    *,
    temperature: float,
    suppressed_ids: torch.Tensor,
    every_position: bool = False,
) -> torch.Tensor:
    """Log-probabilities [N, T] of completions by ``repeated_logits``.

    With ``every_position`` those of the prompt's tokens are computed as well and thrown away, as the paper's released
    trainer does.
    """
    prompts = [group.encoded for group in groups for _ in group.completions]
    completions = [done for group in groups for done in group.completions]
    logits, ids = repeated_logits(module, prompts, completions, every_position=every_position)
    scaled = (logits.float() / temperature).index_fill(-1, suppressed_ids.to(logits.device), -torch.inf)
    logprobs = scaled.log_softmax(dim=-1).gather(-1, ids[..., None]).squeeze(-1)
    return logprobs[:, -max(len(done.token_ids) for done in completions) :]


def clips_of(
    config: PretrainedConfig, prompts: Sequence[EncodedPrompt], device: torch.device
) -> dict[str, torch.Tensor]:
    """The arguments of a Hugging Face call that hold videos and images, apart; none of a kind that is not there."""
    ids, grids, pixels = (
        torch.cat([getattr(p, name) for p in prompts]) for name in ("input_ids", "grid_thw", "pixel_values")
    )
    patches = grids.prod(dim=1)
    tokens = patches // config.vision_config.spatial_merge_size**2
    first_ids = ids[backbone_of(config.model_type).is_vision(config, ids)][tokens.cumsum(0) - tokens]
    arguments = {}
    for id, pixels_name, grids_name in (
        (config.image_token_id, "pixel_values", "image_grid_thw"),
        (config.video_token_id, "pixel_values_videos", "video_grid_thw"),
    ):
        of_kind = first_ids == id
        if of_kind.any():
            arguments[pixels_name] = pixels[of_kind.repeat_interleave(patches)].to(device)
            arguments[grids_name] = grids[of_kind].to(device)
    return arguments


def _left_padded(prompts: Sequence[EncodedPrompt], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [N, L], mask [N, L] bool, positions [3, N, L]."""
    ids = pad_sequence([p.input_ids for p in prompts], batch_first=True, padding_value=pad_id, padding_side="left")
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
    positions = pad_sequence([p.position_ids.T for p in prompts], batch_first=True, padding_side="left")
    return ids, mask, positions.permute(2, 0, 1)
