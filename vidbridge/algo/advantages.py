"""How much better a completion is than its siblings."""

from __future__ import annotations

from enum import Enum

import torch

# Equal rewards that were added up in different orders differ by less than this; real differences are larger.
_ROUNDING = 1e-6


class AdvantageScale(str, Enum):
    """What the distance from the group's mean is divided by."""

    none = "none"  # nothing: Dr. GRPO
    group_std = "group_std"  # the group's own spread: GRPO
    batch_std = "batch_std"  # the spread of all rewards of the step: arXiv 2508.08221


def overlong_penalty(
    lengths: torch.Tensor,  # [P, G] tokens of each completion
    max_completion_tokens: int,
    overlong_frac: float,  # the last part of the allowed length, over which the penalty grows; 0: there is none
) -> torch.Tensor:  # [P, G] float64, from 0 down to -1
    """Soft overlong punishment, to be added to the reward: DAPO (arXiv 2503.14476) equation 13.

    >>> overlong_penalty(torch.tensor([[60, 80, 90, 100]]), max_completion_tokens=100, overlong_frac=0.2)
    tensor([[ 0.0000,  0.0000, -0.5000, -1.0000]], dtype=torch.float64)
    """
    if overlong_frac == 0:
        return torch.zeros(lengths.shape, dtype=torch.float64)
    buffer = overlong_frac * max_completion_tokens
    return ((max_completion_tokens - buffer - lengths.double()) / buffer).clamp(min=-1.0, max=0.0)


def degenerate(rewards: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Which groups have nothing to teach because all ``scored`` siblings earned the same: twice [P, G] -> [P] bool."""
    highest = torch.where(scored, rewards, -torch.inf).amax(dim=1)
    lowest = torch.where(scored, rewards, torch.inf).amin(dim=1)
    return highest - lowest <= _ROUNDING  # -inf where none is scored


def group_advantages(
    rewards: torch.Tensor,  # [P, G]
    scored: torch.Tensor,  # [P, G] bool, False: no reward, whatever stands in its place
    scale: AdvantageScale,
    eps: float = 1e-4,
) -> torch.Tensor:  # [P, G] float32
    """(reward - group mean) / (std + eps): DeepSeekMath (arXiv 2402.03300) section 4.1.2.

    With ``none`` there is no division: Dr. GRPO (arXiv 2503.20783) equation 3. Standard deviations are
    the unbiased ones, as in the released trainer. Means and deviations are those of the scored siblings; what is not
    scored, and degenerate groups, are exactly zero, which arithmetic alone would not give: in float32 eight rewards of
    0.7 come out as 6e-4 each.
    """
    values = torch.where(scored, rewards.double(), 0.0)
    counts = scored.sum(dim=1, keepdim=True)
    centred = torch.where(scored, values - values.sum(dim=1, keepdim=True) / counts.clamp(min=1), 0.0)
    if scale is AdvantageScale.group_std:
        centred = centred / ((centred.square().sum(dim=1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt() + eps)
    elif scale is AdvantageScale.batch_std:
        every = values[scored]
        centred = centred / ((every.std() if len(every) > 1 else 0.0) + eps)
    return torch.where(degenerate(values, scored)[:, None], 0.0, centred).float()
