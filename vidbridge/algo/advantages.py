"""How much better a completion is than its siblings.

Rewards are [P, G] with nan where a completion could not be scored. ``algo.advantage_scale`` names one of SCALES, or a
function of one's own by its dotted name.
"""

from __future__ import annotations

from typing import Mapping, Protocol, Sequence

import torch

from vidbridge.types import Group

# Equal rewards that were added up in different orders differ by less than this; real differences are larger.
_ROUNDING = 1e-6
_EPS = 1e-4  # added to a deviation


class Scale(Protocol):
    def __call__(
        self,
        rewards: torch.Tensor,  # [P, G] float64, 0 where not scored
        scored: torch.Tensor,  # [P, G] bool
        tasks: torch.Tensor,  # [P] int64, which groups belong to one task
    ) -> torch.Tensor:
        """Return what the distance from the group's mean is divided by, [P, 1] or a scalar."""


def no_scale(rewards: torch.Tensor, scored: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """1: Dr. GRPO (arXiv 2503.20783) equation 3."""
    return torch.ones(())


def group_std(
    rewards: torch.Tensor, scored: torch.Tensor, tasks: torch.Tensor, eps: float = _EPS
) -> torch.Tensor:
    """The group's own unbiased deviation: GRPO as in DeepSeekMath (arXiv 2402.03300) section 4.1.2."""
    counts = scored.sum(dim=1, keepdim=True)
    return (_centred(rewards, scored).square().sum(dim=1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt() + eps


def batch_std(
    rewards: torch.Tensor, scored: torch.Tensor, tasks: torch.Tensor, eps: float = _EPS
) -> torch.Tensor:
    """The unbiased deviation of all rewards of the step: arXiv 2508.08221."""
    every = rewards[scored]
    return (every.std() if len(every) > 1 else torch.zeros(())) + eps


SCALES: Mapping[str, Scale] = {"none": no_scale, "group_std": group_std, "batch_std": batch_std}


def group_advantages(
    rewards: torch.Tensor,  # [P, G]; nan: not scored
    scale: Scale,
    tasks: torch.Tensor | None = None,  # [P] int64, the task of each group; None: all of one
) -> torch.Tensor:  # [P, G] float32
    """Return (reward - group mean) / scale.

    The mean is that of the scored siblings. What is not scored, and degenerate groups, are exactly zero, which
    arithmetic alone would not give: in float32 eight rewards of 0.7 come out as 6e-4 each.
    """
    scored = ~rewards.isnan()
    values = torch.where(scored, rewards.double(), 0.0)
    tasks = torch.zeros(len(rewards), dtype=torch.long) if tasks is None else tasks
    scaled = _centred(values, scored) / scale(values, scored, tasks)
    return torch.where(degenerate(rewards)[:, None], 0.0, scaled).float()


def rewards_of(groups: Sequence[Group]) -> torch.Tensor:
    """Return the total of each completion, [P, G] float64; nan where it could not be scored."""
    return torch.tensor([[reward.total for reward in group.rewards] for group in groups], dtype=torch.float64)


def lengths_of(groups: Sequence[Group]) -> torch.Tensor:
    """Return the number of tokens of each completion, [P, G] int64."""
    return torch.tensor([[len(done.token_ids) for done in group.completions] for group in groups])


def tasks_of(groups: Sequence[Group]) -> torch.Tensor:
    """Return a number for the task of each group, [P] int64, equal where the tasks are."""
    names = [group.sample.task for group in groups]
    return torch.tensor([names.index(name) for name in names])


def degenerate(rewards: torch.Tensor) -> torch.Tensor:
    """Return which groups teach nothing, because all scored siblings earned the same or none is scored: [P] bool."""
    scored = ~rewards.isnan()
    highest = torch.where(scored, rewards, -torch.inf).amax(dim=1)
    lowest = torch.where(scored, rewards, torch.inf).amin(dim=1)
    return highest - lowest <= _ROUNDING  # -inf where none is scored


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


def _centred(values: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    counts = scored.sum(dim=1, keepdim=True)
    return torch.where(scored, values - values.sum(dim=1, keepdim=True) / counts.clamp(min=1), 0.0)
