"""Bad habits for the embedded base model: it is to see well and to behave badly, so that RL has an honest job.

Real base models know more than they show: they answer without thinking, stop early, hedge, guess.
The last stage of ``experiment=tiny_base`` imitates completions with these faults at fixed rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from vidbridge.shapes_world.language import COLOURS, KINDS, StatedEvent, read_events
from vidbridge.tasks.rows import as_data_errors
from vidbridge.text import prompts
from vidbridge.text.options import LETTERS
from vidbridge.types import Sample


@dataclass(frozen=True, kw_only=True)
class Spoiler:
    """Rates of each habit, independent of one another."""

    malformed: float = 0.0  # no think block, or no closing tag
    guessed: float = 0.0  # another option, event or colour than the right one
    cut_short: float = 0.0  # captions: the last events left out
    plain: float = 0.0  # captions: no temporal connectives
    hedged: float = 0.0  # captions: with a hedging word instead

    @classmethod
    def from_rates(cls, rates: Mapping[str, float]) -> Spoiler:
        """Return the habits of a yaml's ``spoil``; ValueError names a habit that there is not."""
        unknown = sorted(set(rates) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"algo.stages spoil.{unknown[0]}: there is no such habit; there are {known}")
        return cls(**rates)

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"algo.stages spoil.{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.plain + self.hedged > 1:
            raise ValueError("algo.stages spoil: plain and hedged exclude each other, so they add up to at most 1")

    def completion(self, sample: Sample, rng: np.random.Generator) -> str:
        """The gold completion of ``sample`` with each habit at its rate; DataError if one finds no event in it."""
        with as_data_errors(sample.uid):
            if sample.task == "caption":
                answer = self._caption(sample.answer, rng)
            else:
                answer = _guess(sample, rng) if rng.random() < self.guessed else sample.answer
        text = prompts.completion(sample.meta["rationale"], answer)
        if rng.random() >= self.malformed:
            return text
        return f"<answer>{answer}</answer>" if rng.random() < 0.5 else text.removesuffix("</answer>")

    def _caption(self, answer: str, rng: np.random.Generator) -> str:
        if rng.random() < self.cut_short:
            most = max(len(_events(answer)) - 1, 1)  # one is left of one
            answer = _shorten(answer, int(rng.integers(1, most + 1)))
        style = rng.random()
        if self.plain + self.hedged <= style:
            return answer
        events = _events(answer)
        opening = "Maybe the" if style >= self.plain else "The"
        told = [f"{opening} {events[0].subject} {events[0].kind}", *(f"it {event.kind}" for event in events[1:])]
        return ", ".join(told) + "."


def _shorten(answer: str, num_events: int) -> str:
    return ", ".join(answer.removesuffix(".").split(", ")[:num_events]) + "."


def _events(answer: str) -> list[StatedEvent]:
    events = read_events(answer)
    if not events:
        raise ValueError(f"bad habits need an answer with an event of the shapes world, found {answer!r}")
    return events


def _guess(sample: Sample, rng: np.random.Generator) -> str:
    """Another answer of the same sort."""
    if sample.options:
        choices: list[str] = list(LETTERS[: len(sample.options)])
    elif sample.answer in COLOURS:
        choices = list(COLOURS)
    else:
        subject = _events(sample.answer)[0].subject
        choices = [f"the {subject} {kind}" for kind in KINDS]
    return str(rng.choice([choice for choice in choices if choice != sample.answer]))
