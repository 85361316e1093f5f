"""How an answer is told, whatever it tells: connectives and hedges, length, repetition, a cut end.

With weight 0 these are only watched: what grows without being paid for is a symptom.
"""

from __future__ import annotations

import math
import re
from typing import Sequence

from vidbridge.text.tags import answer_of
from vidbridge.types import Completion, Sample

RUN = 4  # words in a row that count as the same said again
CONNECTIVES = (
    "first", "firstly", "then", "next", "after", "afterward", "afterwards", "later", "before", "while", "meanwhile",
    "until", "finally", "lastly", "eventually", "subsequently", "simultaneously", "at the same time", "in the end",
)  # fmt: skip
HEDGES = (
    "maybe", "perhaps", "possibly", "probably", "presumably", "apparently", "supposedly", "seemingly", "likely",
    "might", "may", "could", "seem", "seems", "seemed", "appear", "appears", "unclear", "uncertain", "hard to tell",
    "not sure",
)  # fmt: skip

BONUS = 0.2  # for each connective, repeats too
MAX_BONUS = 0.4
COST = 0.2  # for each hedge

# "next to" and the "after" of "after-effect" tell no order
_CONNECTIVE = re.compile(rf"(?<!\w-)\b(?!next to\b)(?:{'|'.join(CONNECTIVES)})\b(?!-\w)")
_HEDGE = re.compile(rf"\b(?:{'|'.join(HEDGES)})\b")


class Wording:
    """A bonus for connectives of time; any hedge cancels it and costs, without a lower limit."""

    maximum = MAX_BONUS
    style = True

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [wording(answer_of(completion.text)) for completion in completions]


def wording(caption: str) -> float:
    """
    >>> wording("First it grows, then it spins."), wording("Maybe it grows, then it perhaps spins.")
    (0.4, -0.4)
    """
    words = " ".join(caption.lower().split())
    hedges = len(_HEDGE.findall(words))
    if hedges:
        return -COST * hedges
    return min(BONUS * len(_CONNECTIVE.findall(words)), MAX_BONUS)


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
