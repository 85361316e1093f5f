"""Answers that a rule can judge: the form of the completion, the option chosen, the number stated."""

from __future__ import annotations

from typing import Sequence

from vidbridge.text.numbers import same_number
from vidbridge.text.options import read_option
from vidbridge.text.tags import answer_of, read_tags
from vidbridge.types import Completion, Sample


class Format:
    """1 when the completion is one think block, one answer block and nothing else; else 0. Meant as a gate."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(read_tags(completion.text) is not None) for completion in completions]


class Choice:
    """1 when the answer states the letter of the right option, or its text; else 0."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        if not sample.options:
            raise ValueError("a choice needs a row with options")
        letters = [read_option(answer_of(completion.text), sample.options) for completion in completions]
        return [float(letter == sample.answer) for letter in letters]


class Number:
    """1 when the last number that the answer states equals the reference, in whatever form; else 0."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(same_number(answer_of(completion.text), sample.answer)) for completion in completions]
