"""Questions whose answer is a number: is it the right one?"""

from __future__ import annotations

from typing import Sequence

from vidbridge.text.numbers import same_number
from vidbridge.text.tags import answer_of
from vidbridge.types import Completion, Sample


class Number:
    """1 when the last number that the answer states equals the reference, in whatever form; else 0."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(same_number(answer_of(completion.text), sample.answer)) for completion in completions]
