"""Which samples make up the batch of step n: a pure function of (seed, n), so that resuming is exact."""

from __future__ import annotations

from functools import lru_cache
from typing import Mapping

import numpy as np

from vidbridge.tasks.rows import TaskRows
from vidbridge.types import Sample


class Mixture:
    """A deck of (task, row) cards, shuffled anew for each pass, dealt ``prompts_per_step`` at a time.

    ``shares`` are relative: {"qa": 1, "caption": 3} makes a quarter of the deck qa. The deck has ``total``
    cards, or as many as the tasks have rows; a task with more cards than rows shows some rows again, in a
    new order, only after all of them were shown.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskRows],
        shares: Mapping[str, float],
        *,
        prompts_per_step: int,
        seed: int,
        total: int | None = None,
    ) -> None:
        positive = {name: share for name, share in shares.items() if share > 0}
        self.tasks = {name: tasks[name] for name in sorted(positive)}
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.counts = apportion(
            {name: positive[name] for name in self.tasks}, total or sum(len(task) for task in self.tasks.values())
        )
        self._deck = lru_cache(maxsize=2)(self._shuffled_deck)

    def batch(self, step: int) -> list[Sample]:
        """Return the samples of step ``step`` (from 0)."""
        size = sum(self.counts.values())
        first = step * self.prompts_per_step
        cards = [self._deck(at // size)[at % size] for at in range(first, first + self.prompts_per_step)]
        return [self.tasks[name].sample(row) for name, row in cards]

    def _shuffled_deck(self, epoch: int) -> list[tuple[str, int]]:
        cards: list[tuple[str, int]] = []
        for index, (name, count) in enumerate(self.counts.items()):
            num_rows = len(self.tasks[name])
            for nth in range(epoch * count, (epoch + 1) * count):
                order = _permutation(num_rows, (self.seed, index, nth // num_rows))
                cards.append((name, int(order[nth % num_rows]) + nth // num_rows * num_rows))  # past the end: again
        return [cards[card] for card in _permutation(len(cards), (self.seed, len(self.counts), epoch))]


@lru_cache(maxsize=64)
def _permutation(size: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Return whole numbers that add up to ``total``, as near to the shares as can be (largest remainder).

    >>> apportion({"a": 1, "b": 1, "c": 1}, 4)
    {'a': 2, 'b': 1, 'c': 1}
    """
    exact = {name: share / sum(shares.values()) * total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
