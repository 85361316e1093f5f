"""Intervals of means over seeds and items, by resampling both: what a repetition of the study could have found."""

from __future__ import annotations

from typing import Hashable, Sequence

import numpy as np

NUM_RESAMPLES = 2000


def resampled_means(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Means of values [quantities, seeds, items] over seeds and items, [quantities, NUM_RESAMPLES].

    In each resample seeds are drawn with replacement, and so are ``clusters`` (one a item: its source video), whose
    items come or stay away together. All quantities share the draws: a difference or a ratio of theirs is paired. The
    same on every call. Of n seeds n - 1 are drawn (Rao and Wu, 1988): n would make the variance of their mean
    (n - 1) / n of what it is, which with three seeds is too little by a third.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    member = np.zeros((len(clusters), len(names)))
    member[np.arange(len(clusters)), [names[name] for name in clusters]] = 1.0
    num_seeds, rng = values.shape[1], np.random.default_rng(0)
    num_drawn = max(num_seeds - 1, 1)
    seeds = rng.multinomial(num_drawn, [1 / num_seeds] * num_seeds, size=NUM_RESAMPLES)
    drawn = rng.multinomial(len(names), [1 / len(names)] * len(names), size=NUM_RESAMPLES)
    sums = np.einsum("rc,qrc->qr", drawn, seeds @ (values @ member))
    return sums / (num_drawn * (drawn @ member.sum(axis=0)))


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a resampled number [NUM_RESAMPLES]."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
