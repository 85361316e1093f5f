"""What the others do, in plain Hugging Face calls: the prompt, its pixels included, once for every completion.

The oracle of the tests and the baseline of the benchmarks. ``module`` is the class as ``from_pretrained`` gives it,
with nothing of vidbridge in it.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from vidbridge.policy.packing import pad_completions
from vidbridge.types import EncodedPrompt, Group


def repeated_logprobs(
    module: PreTrainedModel,
    groups: Sequence[Group],
    *,
    temperature: float,
    suppressed_ids: torch.Tensor,
    every_position: bool = False,
) -> torch.Tensor:
    """Log-probabilities [N, T] of completions, each a full row [prompt | completion] with its own copy of the video.

    Prompts are padded left, completions right; what stands on padding means nothing. With ``every_position`` those of
    the prompt's tokens are computed as well and thrown away, as the paper's released trainer does.
    """
    device = module.device
    prompts = [group.encoded for group in groups for _ in group.completions]
    completion_ids, sampled = pad_completions([done for group in groups for done in group.completions])
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
        **_videos(prompts, device),
    ).logits[:, :-1]
    scaled = (logits.float() / temperature).index_fill(-1, suppressed_ids.to(device), -torch.inf)
    logprobs = scaled.log_softmax(dim=-1).gather(-1, ids[:, 1 - kept :, None]).squeeze(-1)
    return logprobs[:, -completion_ids.shape[1] :]


def generate(
    module: PreTrainedModel, prompt: EncodedPrompt, *, num_return_sequences: int, **options: Any
) -> torch.Tensor:
    """Completions [num_return_sequences, T] of one prompt by ``generate``, at the prompt's own positions."""
    ids = prompt.input_ids[None].to(module.device)
    # generate wants the place in the row before the three rotary positions, and goes on counting from the last ones
    positions = torch.cat([torch.arange(ids.shape[1])[None], prompt.position_ids])[:, None]
    return module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=positions.to(module.device),
        num_return_sequences=num_return_sequences,
        **_videos([prompt], module.device),
        **options,
    )[:, ids.shape[1] :]


def _videos(prompts: Sequence[EncodedPrompt], device: torch.device) -> dict[str, torch.Tensor]:
    grids = torch.cat([p.video_grid_thw for p in prompts])
    if len(grids) == 0:
        return {}
    return {
        "pixel_values_videos": torch.cat([p.pixel_values for p in prompts]).to(device),
        "video_grid_thw": grids.to(device),
    }


def _left_padded(prompts: Sequence[EncodedPrompt], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [N, L], mask [N, L] bool, positions [3, N, L]."""
    ids = pad_sequence([p.input_ids for p in prompts], batch_first=True, padding_value=pad_id, padding_side="left")
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]
    positions = pad_sequence([p.position_ids.T for p in prompts], batch_first=True, padding_side="left")
    return ids, mask, positions.permute(2, 0, 1)
