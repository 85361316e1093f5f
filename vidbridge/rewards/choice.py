"""Question answering: was the right option chosen?"""

from __future__ import annotations

from typing import Sequence

from vidbridge.text.options import read_option
from vidbridge.text.tags import answer_of
from vidbridge.types import Completion, Sample


class Choice:
    """1 when the answer states the letter of the right option, or its text; else 0."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        if not sample.options:
            raise ValueError("a choice needs a row with options")
        letters = [read_option(answer_of(completion.text), sample.options) for completion in completions]
        return [float(letter == sample.answer) for letter in letters]
