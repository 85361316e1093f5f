"""Shared-prefix attention as the rule is spoken: one dense mask over the packed row, in 32 bits."""

from __future__ import annotations

from typing import Sequence

import torch


def packed_ids(lengths: Sequence[Sequence[int]], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Group and sibling of each place, for groups of a prompt and completions of these lengths."""
    groups, siblings = [], []
    for group, segments in enumerate(lengths):
        for sibling, length in enumerate(segments):
            groups += [group] * length
            siblings += [sibling] * length
    return torch.tensor(groups, device=device), torch.tensor(siblings, device=device)


def sees(group_ids: torch.Tensor, sibling_ids: torch.Tensor) -> torch.Tensor:
    """[S, S] bool: may the query of a row look at the key of a column?"""
    group, sibling = group_ids.tolist(), sibling_ids.tolist()
    size = len(group)
    rows = [
        [k <= q and group[k] == group[q] and sibling[k] in (0, sibling[q]) for k in range(size)] for q in range(size)
    ]
    return torch.tensor(rows, device=group_ids.device)


def dense_attention(
    query: torch.Tensor,  # [1, H, S, D]
    key: torch.Tensor,  # [1, K, S, D]
    value: torch.Tensor,  # [1, K, S, D]
    mask: torch.Tensor,  # [S, S] bool
    scaling: float,
) -> torch.Tensor:  # [1, S, H, D] float32
    shared = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(shared, dim=1) for tensor in (key, value))
    scores = (query.float() @ key.mT * scaling).masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)
