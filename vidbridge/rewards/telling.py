"""How a text is told, whatever it tells. To be watched with weight 0: what grows without being paid is a symptom."""

from __future__ import annotations

import math
from typing import Sequence

from vidbridge.text.tags import answer_of
from vidbridge.types import Completion, Sample

RUN = 4  # words that count as the same said again


class Words:
    """The length of the answer in words."""

    maximum = math.inf
    style = True

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(len(answer_of(completion.text).split())) for completion in completions]


class Repetition:
    """The share of the answer's runs of four words that stood in it before."""

    maximum = 1.0
    style = True

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [repetition(answer_of(completion.text)) for completion in completions]


class Truncated:
    """1 when the completion was cut at its longest length."""

    maximum = 1.0
    style = True

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(not completion.finished) for completion in completions]


def repetition(text: str) -> float:
    """
    >>> repetition("it grows and it spins"), repetition("so it grows, so it grows, so it grows, so it grows")
    (0.0, 0.5555555555555556)
    """
    words = text.lower().split()
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
