"""The numbers that papers report, from what items earned, each with its 95 % interval.

    {"caption F1 %": {"value": 34.1, "low": 32.0, "high": 36.3}, "caption recall %": {..}, ..}
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from vidbridge.evaluation.intervals import interval, resampled_means

Table = dict[str, dict[str, float]]  # title -> value, low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A column: ``of`` makes a number of the means of ``terms``, [terms, ..] -> [..]; ``summed``: times the items."""

    title: str
    terms: tuple[str, ...]
    of: Callable[[np.ndarray], np.ndarray]
    summed: bool = False


def f1(means: np.ndarray) -> np.ndarray:
    """Return the F1 of mean recall and mean precision in %, as DREAM-1K does; not the mean F1 of captions."""
    recall, precision = means
    total = recall + precision
    return 200 * recall * precision / np.where(total > 0, total, 1.0)


def percent(means: np.ndarray) -> np.ndarray:
    return 100 * means[0]


METRICS = {
    "qa": Metric(title="QA accuracy %", terms=("choice",), of=percent),
    # a sum of 0, 1, 2
    "dark_event_infer": Metric(title="DarkEventInfer %", terms=("grade",), of=lambda means: 50 * means[0]),
    "mix_vid_qa": Metric(title="MixVidQA %", terms=("verdict",), of=percent),
    "caption": Metric(title="caption F1 %", terms=("event_recall", "event_precision"), of=f1),
}
MORE = {
    "dark_event_infer": (
        Metric(title="DarkEventInfer sum", terms=("grade",), of=lambda means: means[0], summed=True),
    ),
    "caption": (
        Metric(title="caption recall %", terms=("event_recall",), of=percent),
        Metric(title="caption precision %", terms=("event_precision",), of=percent),
    ),
}


def metric_of(task: str, maximum: float) -> Metric:
    """The task's own, or for a task that the paper does not know its reward as a part of the most there is."""
    return METRICS.get(task) or reward_of(task, maximum)


def reward_of(task: str, maximum: float) -> Metric:
    return Metric(title=f"{task} %", terms=("total",), of=lambda means: 100 * means[0] / maximum)


def headline(task: str, maximum: float, items: Sequence[Mapping[str, np.ndarray]]) -> Metric:
    """The metric of the task, or its reward where that is made of other terms."""
    metric = metric_of(task, maximum)
    return metric if all(term in items[0] for term in metric.terms) else reward_of(task, maximum)


def table(task: str, maximum: float, items: Sequence[Mapping[str, np.ndarray]], sources: Sequence[str]) -> Table:
    """Return all numbers of a task; an item is what its samples earned by term, [samples], nan where not scored.

    Several samples make each number a mean@n, and where an item is right or wrong there is pass@k too, for k = 2, 4, ..
    and the items that have as many scored samples.
    """
    first = headline(task, maximum, items)
    found = {}
    for metric in (first, *(MORE.get(task, ()) if first.terms != ("total",) else ())):
        values = np.array([[np.nanmean(item[term]) for item in items] for term in metric.terms])
        found[metric.title] = estimate(values, sources, metric)
    if len(first.terms) == 1:
        scored = [item[first.terms[0]][~np.isnan(item[first.terms[0]])] for item in items]
        right = [first.of(each[None]) > 100 - 1e-6 for each in scored]
        for k in powers_of_two(max(map(len, right))):
            enough = [index for index, each in enumerate(right) if len(each) >= k]
            passes = np.array([[pass_at_k(len(right[n]), int(right[n].sum()), k) for n in enough]])
            metric = Metric(title="", terms=("pass",), of=percent)
            found[f"{task} pass@{k} %"] = estimate(passes, [sources[n] for n in enough], metric)
    return found


def estimate(values: np.ndarray, sources: Sequence[str], metric: Metric) -> dict[str, float]:
    """Return a metric of values [terms, items] with its interval; items of one source video are drawn together."""
    scale = len(sources) if metric.summed else 1
    low, high = interval(scale * metric.of(resampled_means(values[:, None], sources)))
    return {"value": float(scale * metric.of(values.mean(axis=1))), "low": low, "high": high}


def by_category(
    task: str,
    maximum: float,
    items: Sequence[Mapping[str, np.ndarray]],
    sources: Sequence[str],
    categories: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, float]]]:
    """The first number of the task for the items of each category, with how many they are: kind -> value -> number."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    metric = headline(task, maximum, items)
    for kind in dict.fromkeys(kind for each in categories for kind in each):
        for name in sorted({str(each[kind]) for each in categories if kind in each}):
            own = [index for index, each in enumerate(categories) if kind in each and str(each[kind]) == name]
            values = np.array([[np.nanmean(items[index][term]) for index in own] for term in metric.terms])
            numbers = estimate(values, [sources[index] for index in own], metric)
            found.setdefault(kind, {})[name] = {**numbers, "n": len(own)}
    return found


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that of k samples drawn without replacement at least one is right: unbiased for k fresh samples.

    >>> pass_at_k(4, 1, 2)  # 1 - (3 choose 2) / (4 choose 2)
    0.5
    """
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def powers_of_two(up_to: int) -> list[int]:
    """
    >>> powers_of_two(8), powers_of_two(1)
    ([2, 4, 8], [])
    """
    return [2**n for n in range(1, up_to.bit_length()) if 2**n <= up_to]
