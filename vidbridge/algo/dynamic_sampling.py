"""Groups that teach nothing are replaced by others, a few times: DAPO (arXiv 2503.14476) equation 11."""

from __future__ import annotations

from typing import Callable, Sequence

from vidbridge.algo.advantages import degenerate, rewards_of
from vidbridge.types import Group


def dynamic_sampling(
    groups: Sequence[Group], resample: Callable[[int, list[int]], Sequence[Group]], max_refills: int
) -> tuple[list[Group], dict[str, float]]:
    """Return the groups of a batch, idle ones replaced where that was possible, and metrics.

    ``resample(refill, idle)`` samples one new group for each of the indices ``idle``; refills count from 1. What is
    still idle after ``max_refills`` stays.
    """
    groups, num_extra = list(groups), 0
    for refill in range(1, max_refills + 1):
        idle = degenerate(rewards_of(groups)).nonzero().flatten().tolist()
        if not idle:
            break
        fresh = resample(refill, idle)
        num_extra += len(fresh)
        for index, group, is_idle in zip(idle, fresh, degenerate(rewards_of(fresh)).tolist(), strict=True):
            if not is_idle:
                groups[index] = group
    idle_frac = degenerate(rewards_of(groups)).sum().item() / len(groups)
    return groups, {"rollout/extra_groups": float(num_extra), "rollout/idle_frac": idle_frac}
