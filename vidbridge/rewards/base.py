"""What a reward is, and how several make one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Mapping, Protocol, Sequence

from vidbridge.judges.base import Judge
from vidbridge.types import Completion, RewardBreakdown, Sample

UNSCORED = math.nan  # the number of a completion that no judge could score; it is masked, never taken for a number


class Reward(Protocol):
    """One named number for each completion; the name is its key in the yaml.

    A class whose constructor has a parameter ``judge`` is given the run's judge. One with ``style = True`` pays for the
    way of telling, which the reference answer itself need not have.
    """

    @property
    def maximum(self) -> float:
        """The most that a completion can get."""

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        """One number for each completion of one prompt, UNSCORED where there is none.

        May raise JudgeUnavailable when none of them can be scored.
        """


@dataclass(frozen=True, kw_only=True)
class GatedSum:
    """Product of the gates times the weighted sum of the task's terms.

    Caption weights ``{"event_recall": 1.0, "event_precision": 0.5}`` and a format gate:
    a well-formed caption with recall 1 and precision 0.8 gets 1 * (1 * 1 + 0.5 * 0.8) = 1.4.
    A term is evaluated for the tasks that give it a weight; weight 0 logs it without paying.
    """

    gates: Mapping[str, Reward]
    terms: Mapping[str, Reward]
    weights: Mapping[str, Mapping[str, float]]  # by task, then by term
    judge: Judge | None = None  # the one that the terms ask

    def score(self, sample: Sample, completions: Sequence[Completion]) -> tuple[RewardBreakdown, ...]:
        """One breakdown for each completion. Raises JudgeUnavailable, and ValueError for a task without weights."""
        weights = self._weights(sample.task)
        gates = _evaluate(self.gates, self.gates, sample, completions)
        terms = _evaluate(self.terms, weights, sample, completions)
        return tuple(
            RewardBreakdown(
                total=_total(gate, term, weights),
                terms=term,
                gates=gate,
            )
            for gate, term in zip(gates, terms)
        )

    def maximum(self, task: str) -> float:
        """The most that a completion of this task can earn when no weight is negative.

        A term with a negative weight counts as nothing: it costs, unless the term itself is below 0, as wording can be.
        """
        best = sum(weight * self.terms[name].maximum for name, weight in self._weights(task).items() if weight > 0)
        return best * math.prod(gate.maximum for gate in self.gates.values())

    def owed(self, task: str, earned: RewardBreakdown | None = None) -> float:
        """The part of ``maximum``, or of what was ``earned``, that a gold answer must earn: no matters of style."""
        weights = {
            name: weight
            for name, weight in self._weights(task).items()
            if weight > 0 and not getattr(self.terms[name], "style", False)
        }
        if earned is not None:
            return _total(earned.gates, earned.terms, weights)
        best = {name: self.terms[name].maximum for name in weights}
        return _total({name: gate.maximum for name, gate in self.gates.items()}, best, weights)

    def metrics(self) -> dict[str, float]:
        """Return what the judge did since this was called last, which all ranks do together."""
        return self.judge.metrics() if self.judge else {}

    def _weights(self, task: str) -> Mapping[str, float]:
        if task not in self.weights:
            raise ValueError(f"reward: there are no weights for the task '{task}'. {_known('Tasks', self.weights)}")
        return self.weights[task]


def _total(gates: Mapping[str, float], terms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the total; what a closed gate or a weight of 0 keeps out cannot leave a completion unscored."""
    gate = math.prod(gates.values())
    return gate * sum(weight * terms[name] for name, weight in weights.items() if weight) if gate else 0.0


def _evaluate(
    rewards: Mapping[str, Reward], names: Iterable[str], sample: Sample, completions: Sequence[Completion]
) -> list[dict[str, float]]:
    """The named rewards of each completion."""
    columns = {name: rewards[name](sample, completions) for name in names}
    for name, values in columns.items():
        assert len(values) == len(completions), f"{name} gave {len(values)} numbers for {len(completions)} completions"
    return [{name: values[index] for name, values in columns.items()} for index in range(len(completions))]


def _known(what: str, names: Iterable[str]) -> str:
    return f"{what}: {', '.join(names) or 'none'}"
