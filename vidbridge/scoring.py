"""Groups in, groups with rewards out."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Mapping, Sequence

from vidbridge.judges.base import JudgeUnavailable
from vidbridge.rewards.base import GatedSum
from vidbridge.tasks.base import DataError, Task, as_data_errors
from vidbridge.types import Completion, Group

NUM_TESTED = 4  # rows of each task that the self-test looks at


def score_groups(groups: Sequence[Group], reward: GatedSum) -> list[Group]:
    """Each group with its rewards. One that the judge could not score stays, unrewarded and untrainable.

    Raises DataError naming the row that a reward or the judge cannot work with.
    """
    return [_score_group(group, reward) for group in groups]


def _score_group(group: Group, reward: GatedSum) -> Group:
    try:
        with as_data_errors(group.sample):
            return replace(group, rewards=reward.score(group.sample, group.completions))
    except JudgeUnavailable:
        return replace(group, rewards=(), trainable=False)


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all scored completions of a task, and how many groups the judge failed.

    ``{"reward/qa/total": 0.4, "reward/qa/choice": 0.5, "reward/qa/format": 0.8, "rollout/judge_failed": 0.0}``
    """
    values: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for reward in group.rewards:
            for name, value in {"total": reward.total, **reward.terms, **reward.gates}.items():
                values[f"reward/{group.sample.task}/{name}"].append(value)
    metrics = {name: sum(column) / len(column) for name, column in values.items()}
    return {**metrics, "rollout/judge_failed": float(sum(not group.rewards for group in groups))}


def self_test(tasks: Mapping[str, Task], reward: GatedSum, *, perfect: bool = True) -> None:
    """Before training: gold answers must earn the most there is (if no weight is negative), empty ones nothing.

    Not ``perfect``: gold answers that people wrote must earn more than nothing.

    Raises DataError listing every row that does not, or that cannot be scored: a reward stuck at zero is found here,
    not after a night.
    """
    failures = []
    for name, task in tasks.items():
        best = reward.maximum(name)
        pays_only = min(reward.weights[name].values(), default=0.0) >= 0  # else gold may earn more, or less
        for sample in map(task.sample, range(min(NUM_TESTED, len(task)))):
            gold = task.gold(sample)
            completions = [Completion(text=text, token_ids=()) for text in (gold, "")]
            try:
                right, empty = reward.score(sample, completions)
            except (JudgeUnavailable, ValueError) as error:
                failures.append(f"{sample.uid}: {error}")
                continue
            enough = math.isclose(right.total, best, abs_tol=1e-6) if perfect else right.total > 0
            if pays_only and not enough:
                parts = {**right.gates, **right.terms}
                failures.append(f"{sample.uid}: gold answer earns {right.total:g} of {best:g}: {parts} for {gold!r}")
            if empty.total > 0:
                failures.append(f"{sample.uid}: an empty completion earns {empty.total:g}")
    if failures:
        raise DataError("the reward does not fit the data\n  " + "\n  ".join(failures))
