"""From results to numbers with intervals: what a row scores, and its difference to another, paired by seed and item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Mapping, Sequence

import numpy as np

from experiments.ablations.results import Item, Result
from vidbridge.evaluation import paper_numbers
from vidbridge.evaluation.intervals import interval, resampled_means
from vidbridge.evaluation.paper_numbers import Metric

Seeds = Mapping[int, Result]  # the results of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """With its 95 % interval."""

    mean: float
    low: float
    high: float
    num_seeds: int
    num_items: int

    @property
    def is_clear(self) -> bool:
        """A difference whose interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a row scores in one task and kind of evaluation, and its difference to the baseline."""

    row: str
    kind: str
    task: str
    score: Estimate
    difference: Estimate | None  # None of the baseline itself


def metric_of(task: str, result: Result) -> Metric:
    """The task's own, or its reward as a part of the most there is."""
    return paper_numbers.metric_of(task, result.maximum[task])


def score(row: Seeds, kind: str, task: str) -> Estimate:
    """The mean over the row's seeds and items."""
    return _estimate([row], kind, task, row.keys(), lambda parts: parts[0])


def difference(row: Seeds, baseline: Seeds, kind: str, task: str) -> Estimate | None:
    """``row`` less ``baseline`` on the seeds and items that both have; None where they share no seed."""
    seeds = [seed for seed in row if seed in baseline]
    return _estimate([row, baseline], kind, task, seeds, lambda parts: parts[0] - parts[1]) if seeds else None


def _estimate(
    rows: Sequence[Seeds], kind: str, task: str, seeds: Iterable[int], combine: Callable[[list[np.ndarray]], np.ndarray]
) -> Estimate:
    """Of the metrics of all ``rows``, resampled together."""
    metric = metric_of(task, next(iter(rows[0].values())))
    found = [[_by_uid(row[seed].items, kind, task) for seed in seeds] for row in rows]
    uids = [uid for uid in found[0][0] if all(uid in items for row in found for items in row)]
    values = np.array(
        [[[items[uid].earned[term] for uid in uids] for items in row] for row in found for term in metric.terms]
    )
    sources = [found[0][0][uid].source for uid in uids]

    def number(means: np.ndarray) -> np.ndarray:
        return combine([metric.of(part) for part in np.split(means, len(rows))])

    mean, (low, high) = float(number(values.mean(axis=(1, 2)))), interval(number(resampled_means(values, sources)))
    return Estimate(
        # machines add floats in different orders: that shall not decide how a number is rounded when it is printed
        mean=round(mean, 6),
        low=round(low, 6),
        high=round(high, 6),
        num_seeds=values.shape[1],
        num_items=len(uids),
    )


def _by_uid(items: Iterable[Item], kind: str, task: str) -> dict[str, Item]:
    return {item.uid: item for item in items if item.kind == kind and item.task == task}


def tasks_of(rows: Mapping[str, Seeds]) -> list[str]:
    """Those that every result has, in the order of the first."""
    every = [result.maximum.keys() for row in rows.values() for result in row.values()]
    return [task for task in every[0] if all(task in each for each in every)] if every else []
