"""What a reward is, and how several make one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Mapping, Protocol, Sequence

from vidbridge.types import Completion, RewardBreakdown, Sample


class Reward(Protocol):
    """One named number for each completion; the name is its key in the yaml.

    A class whose constructor has a parameter ``judge`` is given the run's judge.
    """

    @property
    def maximum(self) -> float:
        """The most that a completion can get."""

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        """One number for each completion of one prompt. May raise JudgeUnavailable."""


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

    def __post_init__(self) -> None:
        """Raises ValueError on a weight for a term that does not exist, and on a name used twice."""
        for task, weights in self.weights.items():
            for term in weights:
                if term not in self.terms:
                    raise ValueError(f"reward.{task}.{term}: there is no term '{term}'. {_known('Terms', self.terms)}")
        for name in self.gates.keys() & self.terms.keys():
            raise ValueError(f"reward: '{name}' is both a gate and a term; give one of them another name")

    def score(self, sample: Sample, completions: Sequence[Completion]) -> tuple[RewardBreakdown, ...]:
        """One breakdown for each completion. Raises JudgeUnavailable, and ValueError for a task without weights."""
        weights = self._weights(sample.task)
        gates = _evaluate(self.gates, self.gates, sample, completions)
        terms = _evaluate(self.terms, weights, sample, completions)
        return tuple(
            RewardBreakdown(
                total=math.prod(gate.values()) * sum(weights[name] * value for name, value in term.items()),
                terms=term,
                gates=gate,
            )
            for gate, term in zip(gates, terms)
        )

    def maximum(self, task: str) -> float:
        """The most that a completion of this task can earn when no weight is negative.

        A term with a negative weight counts as nothing: it costs, unless the term itself is below 0, as wording can be.
        """
        best = sum(max(weight, 0.0) * self.terms[name].maximum for name, weight in self._weights(task).items())
        return best * math.prod(gate.maximum for gate in self.gates.values())

    def _weights(self, task: str) -> Mapping[str, float]:
        if task not in self.weights:
            raise ValueError(f"reward: there are no weights for the task '{task}'. {_known('Tasks', self.weights)}")
        return self.weights[task]


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
