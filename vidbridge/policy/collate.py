"""Ragged prompts and completions -> the rectangular tensors of a Batch. Prompts are padded left, completions right."""

from __future__ import annotations

from typing import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from vidbridge.types import Batch, Completion, EncodedPrompt, Group


def pad_prompts(prompts: Sequence[EncodedPrompt], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The prompt side of a Batch, by field name: P prompts of ragged length -> [P, L], each prompt once.

    Every prompt ends in the last column, so that its completion starts in the same column for all.
    """
    ids = pad_sequence([p.input_ids for p in prompts], batch_first=True, padding_value=pad_id, padding_side="left")
    mask = pad_sequence(
        [torch.ones_like(p.input_ids, dtype=torch.bool) for p in prompts], batch_first=True, padding_side="left"
    )
    positions = pad_sequence([p.position_ids.T for p in prompts], batch_first=True, padding_side="left")  # [P, L, 3]
    fields = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "prompt_positions": positions.permute(2, 0, 1),
        "rope_deltas": torch.tensor([p.rope_delta for p in prompts]),
        "pixel_values": torch.cat([p.pixel_values for p in prompts]),
        "video_grid_thw": torch.cat([p.video_grid_thw for p in prompts]),
    }
    return {name: tensor.to(device) for name, tensor in fields.items()}


def pad_completions(completions: Sequence[Completion], fill_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, T] int64 and their mask [N, T] bool, T the longest of these completions."""
    ids = [torch.tensor(completion.token_ids, dtype=torch.long) for completion in completions]
    lengths = torch.tensor([len(row) for row in ids])
    padded = pad_sequence(ids, batch_first=True, padding_value=fill_id)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def pad_logprobs(completions: Sequence[Completion]) -> torch.Tensor | None:
    """What the sampler reported [N, T], 0 on padding; None for completions that were not sampled."""
    rows = [torch.tensor(done.sampler_logprobs) for done in completions if done.sampler_logprobs is not None]
    return pad_sequence(rows, batch_first=True) if len(rows) == len(completions) else None


def loss_mask(groups: Sequence[Group]) -> torch.Tensor:
    """[N, T] bool on the CPU: the sampled tokens of all rows, group after group; all False where not trainable."""
    _, mask = pad_completions([completion for group in groups for completion in group.completions], fill_id=0)
    return mask & rows_trainable(groups)[:, None]


def rows_trainable(groups: Sequence[Group]) -> torch.Tensor:
    return torch.tensor([group.trainable for group in groups for _ in group.completions])


def collate(
    groups: Sequence[Group],
    advantages: torch.Tensor,
    token_weights: torch.Tensor,
    *,
    pad_id: int,
    eos_id: int,
    suppressed_ids: torch.Tensor,  # [K], those that the sampler never draws
    device: torch.device,
) -> Batch:
    """One Batch of all ``groups``; advantages [N] and token_weights [N, >= T] in the order of their completions.

    Completions are padded with EOS: unlike the padding token it has a finite log-probability under the policy.
    """
    completions = [completion for group in groups for completion in group.completions]
    assert len(advantages) == len(token_weights) == len(completions), "one advantage and row of weights a completion"
    ids, mask = pad_completions(completions, eos_id)
    forbidden = ids[mask & torch.isin(ids, suppressed_ids)].unique().tolist()
    # their log-probability is -inf: one of them and the loss is lost
    assert not forbidden, f"completions hold tokens that are never sampled: {forbidden}"
    siblings = torch.tensor([len(group.completions) for group in groups])
    sampled = pad_logprobs(completions)
    return Batch(
        **pad_prompts([group.encoded for group in groups], pad_id, device),
        row_prompt=torch.arange(len(groups)).repeat_interleave(siblings).to(device),
        completion_ids=ids.to(device),
        loss_mask=(mask & rows_trainable(groups)[:, None]).to(device),
        advantages=advantages.float().to(device),
        token_weights=token_weights[:, : ids.shape[1]].float().to(device),
        sampler_logprobs=None if sampled is None else sampled.to(device),
    )
