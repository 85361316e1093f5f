"""Is the completion one think block and one answer block, and nothing else?"""

from __future__ import annotations

from typing import Sequence

from vidbridge.text.tags import read_tags
from vidbridge.types import Completion, Sample


class Format:
    """1 when well formed, else 0. Meant as a gate."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [float(read_tags(completion.text) is not None) for completion in completions]
