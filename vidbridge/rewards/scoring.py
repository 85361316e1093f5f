"""Groups in, groups with rewards out."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Callable, Iterator, Mapping, Self, Sequence

from vidbridge.errors import DataError
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.rewards.base import GatedSum
from vidbridge.tasks.rows import TaskRows, as_data_errors
from vidbridge.text import prompts
from vidbridge.types import Completion, Group, RewardBreakdown, Sample

NUM_TESTED = 4  # rows of each task that the self-test looks at
EVASION = "I cannot tell what happens here."
MAX_THREADS = 64  # groups that wait for the judge at the same time


def score_groups(groups: Sequence[Group], reward: GatedSum) -> list[Group]:
    """Return each group with its rewards. One that the judge could not score stays, with totals of nan.

    Raises DataError naming the row that a reward or the judge cannot work with, and JudgeLost.
    """
    with Scorer(reward) as scorer:
        for index, group in enumerate(groups):
            scorer.add(index, group)
        return list(scorer.groups().values())


class Scorer:
    """``score_groups`` of groups that come one by one, each with its index; use as a context.

    Where the judge is one to wait for, a group goes to it when it comes and beside the others, while the caller does
    something else; otherwise when it is asked for.
    """

    def __init__(self, reward: GatedSum) -> None:
        self._reward = reward
        self._pool = ThreadPoolExecutor(MAX_THREADS) if waits(reward) else None
        self._results: dict[int, Callable[[], Group]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def add(self, index: int, group: Group) -> None:
        if self._pool is None:
            self._results[index] = partial(_score_group, group, self._reward)
        else:
            self._results[index] = self._pool.submit(_score_group, group, self._reward).result

    def groups(self) -> dict[int, Group]:
        """Return all groups, scored, by index."""
        return {index: result() for index, result in self._results.items()}


def waits(reward: GatedSum) -> bool:
    return reward.judge is not None and reward.judge.waits


def _score_group(group: Group, reward: GatedSum) -> Group:
    try:
        with as_data_errors(group.sample.uid):
            rewards = reward.score(group.sample, group.completions)
    except JudgeUnavailable:
        rewards = ()
    if not any(each.scored for each in rewards):
        rewards = (RewardBreakdown.unscored(),) * len(group.completions)
    return replace(group, rewards=rewards)


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all completions of a task that have the number, and how many could not be scored.

    ``{"reward/qa/total": 0.4, "reward/qa/choice": 0.5, "reward/qa/format": 0.8, "reward/qa/unscored": 0.0,
    "rollout/judge_failed": 0.0}``
    """
    values: dict[str, list[float]] = defaultdict(list)
    unscored: Counter[str] = Counter()
    for group in groups:
        unscored[group.sample.task] += group.scored.count(False)
        for reward in group.rewards:
            for name, value in {"total": reward.total, **reward.terms, **reward.gates}.items():
                if not math.isnan(value):
                    values[f"reward/{group.sample.task}/{name}"].append(value)
    metrics = {name: sum(column) / len(column) for name, column in values.items()}
    metrics |= {f"reward/{task}/unscored": float(count) for task, count in unscored.items()}
    return {**metrics, "rollout/judge_failed": float(unscored.total())}


def self_test(tasks: Mapping[str, TaskRows], reward: GatedSum, *, perfect: bool = True) -> None:
    """Before training: gold answers must earn the most there is, empty ones nothing, and evasions not the judge's best.

    The most, but for terms of style, which a reference need not earn, and for the slack of a judge that is a model.
    Not ``perfect``: gold answers that people wrote must earn more than nothing.

    Raises DataError listing every row that does not, or that cannot be scored: a reward stuck at zero is found here,
    not after a night.
    """
    rows = [(task, task.sample(index)) for task in tasks.values() for index in range(min(NUM_TESTED, len(task)))]
    with ThreadPoolExecutor(MAX_THREADS if waits(reward) else 1) as pool:
        found = pool.map(lambda row: _tested(row[1], row[0].gold(row[1]), reward, perfect), rows)
        failures = [f"{sample.uid}: {failure}" for (_, sample), those in zip(rows, found) for failure in those]
    if failures:
        raise DataError("the reward does not fit the data\n  " + "\n  ".join(failures))


def _tested(sample: Sample, gold: str, reward: GatedSum, perfect: bool) -> list[str]:
    texts = (gold, "", prompts.completion("", EVASION))
    try:
        rewards = reward.score(sample, [Completion(text=text, token_ids=()) for text in texts])
    except (JudgeUnavailable, ValueError) as error:
        return [str(error)]
    return list(_failures(sample, gold, rewards, reward, perfect))


def _failures(
    sample: Sample, gold: str, rewards: Sequence[RewardBreakdown], reward: GatedSum, perfect: bool
) -> Iterator[str]:
    right, empty, evasive = rewards
    best, slack = reward.owed(sample.task), reward.judge.slack if reward.judge else 0.0
    earned = reward.owed(sample.task, right)
    if math.isnan(earned):
        yield f"could not be judged: {reward.judge.trouble if reward.judge else 'a term is nan'}"
    elif earned < (1 - slack) * best - 1e-6 if perfect else earned <= 0:
        yield f"gold answer earns {earned:g} of {best:g}: { {**right.gates, **right.terms} } for {gold!r}"
    if empty.total > 0:
        yield f"an empty completion earns {empty.total:g}"
    for name, value in evasive.terms.items():
        term = reward.terms[name]
        if getattr(term, "judge", None) is not None and value >= term.maximum:
            yield f"the judge gives {name} {value:g} for {EVASION!r}"
