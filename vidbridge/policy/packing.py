"""Groups -> the tensors of a Batch: whole groups side by side in one row, every prompt once.

    packed row  [p1 c11 c12 .. c1G | p2 c21 .. c2G | ..]

What belongs to completions alone (ids, masks, weights, log-probabilities) stays a table [N, T], padded right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from vidbridge.types import Batch, Completion, Group


def packed_tokens(group: Group) -> int:
    """Places a group takes in a packed row. The last token of a completion predicts nothing and takes none."""
    return len(group.encoded.input_ids) + sum(len(done.token_ids) - 1 for done in group.completions)


def fill_rows(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return which groups go together: indices, the longest first, each in the first row with room for it.

    A row that runs out of memory does so at the start of a step, not in the middle of a night. A group longer than
    ``max_tokens`` gets a row of its own.

    >>> fill_rows([30, 100, 60, 40], max_tokens=100)
    [[1], [2, 3], [0]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = next((row for row, free in enumerate(room) if lengths[index] <= free), None)
        if fits is None:
            rows.append([index])
            room.append(max_tokens - lengths[index])
        else:
            rows[fits].append(index)
            room[fits] -= lengths[index]
    return rows


def pack(
    groups: Sequence[Group],
    advantages: torch.Tensor,  # [N], in the order of the groups' completions
    token_weights: torch.Tensor,  # [N, T or wider]
    *,
    suppressed_ids: torch.Tensor,  # [K], those that the sampler never draws
) -> Batch:
    """One Batch of all ``groups``, on the CPU."""
    completions = [completion for group in groups for completion in group.completions]
    assert len(advantages) == len(token_weights) == len(completions), "one advantage and row of weights a completion"
    completion_ids, sampled = pad_completions(completions)
    forbidden = completion_ids[sampled & torch.isin(completion_ids, suppressed_ids)].unique().tolist()
    # their log-probability is -inf: one of them and the loss is lost
    assert not forbidden, f"completions hold tokens that are never sampled: {forbidden}"

    ids, positions, group_ids, sibling_ids, predictors = [], [], [], [], []
    length = 0
    for number, group in enumerate(groups):
        prompt = group.encoded
        first = len(prompt.input_ids) + prompt.rope_delta  # position of every completion's first token
        last_of_prompt = length + len(prompt.input_ids) - 1
        segments = [prompt.input_ids, *(torch.tensor(done.token_ids[:-1]) for done in group.completions)]
        for sibling, segment in enumerate(segments):
            ids.append(segment.long())
            after = first + torch.arange(len(segment))
            positions.append(prompt.position_ids if sibling == 0 else after.expand(3, -1))
            group_ids.append(torch.full((len(segment),), number))
            sibling_ids.append(torch.full((len(segment),), sibling))
            if sibling > 0:
                predictors.append(torch.cat([torch.tensor([last_of_prompt]), length + torch.arange(len(segment))]))
            length += len(segment)

    return Batch(
        input_ids=torch.cat(ids),
        position_ids=torch.cat(positions, dim=1),
        group_ids=torch.cat(group_ids),
        sibling_ids=torch.cat(sibling_ids),
        pixel_values=torch.cat([group.encoded.pixel_values for group in groups]),
        grid_thw=torch.cat([group.encoded.grid_thw for group in groups]),
        completion_ids=completion_ids,
        predictors=pad_sequence(predictors, batch_first=True),
        sampled_mask=sampled,
        loss_mask=sampled & rows_scored(groups)[:, None],
        advantages=advantages.float(),
        token_weights=token_weights[:, : completion_ids.shape[1]].float(),
        sampler_logprobs=pad_logprobs(completions),
    )


def masked(batch: Batch) -> Batch:
    """Return the same batch with nothing to learn from it."""
    return replace(
        batch,
        loss_mask=torch.zeros_like(batch.loss_mask),
        advantages=torch.zeros_like(batch.advantages),
        token_weights=torch.zeros_like(batch.token_weights),
    )


def pad_completions(completions: Sequence[Completion]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, T] int64 and their mask [N, T] bool, T the longest of these completions."""
    ids = [torch.tensor(completion.token_ids, dtype=torch.long) for completion in completions]
    lengths = torch.tensor([len(row) for row in ids])
    padded = pad_sequence(ids, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def pad_logprobs(completions: Sequence[Completion]) -> torch.Tensor | None:
    """Return what the sampler reported [N, T], 0 on padding; None for completions that were not sampled."""
    rows = [torch.tensor(done.sampler_logprobs) for done in completions if done.sampler_logprobs is not None]
    return pad_sequence(rows, batch_first=True) if len(rows) == len(completions) else None


def loss_mask(groups: Sequence[Group]) -> torch.Tensor:
    """[N, T] bool on the CPU: the sampled tokens of all rows, group after group; False where one does not count."""
    _, mask = pad_completions([completion for group in groups for completion in group.completions])
    return mask & rows_scored(groups)[:, None]


def rows_scored(groups: Sequence[Group]) -> torch.Tensor:
    return torch.tensor([counts for group in groups for counts in group.scored])
