"""What a task is: how a row is made out of annotated videos, what the model is asked, what a right answer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Mapping, Sequence

import numpy as np

from vidbridge.tasks.sources import Draft, Source
from vidbridge.text import prompts
from vidbridge.types import Sample


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task, which holds no rows. A new one is a subclass with ``construct``, and a yaml with its target and its text.

    Its fields are its own parameters, which the yaml sets.
    """

    name: ClassVar[str]
    problem_type: ClassVar[str]  # its name in the released JSONL
    num_sources: ClassVar[int] = 1
    takes_images: ClassVar[bool] = False  # whether its rows may show images, beside a video or in its place
    placeholders: ClassVar[tuple[str, ...]] = ("question",)  # all that its template must have, and may

    @abstractmethod
    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        """Return a row out of ``num_sources`` annotated videos; None when these do not lend themselves to it.

        Whether it is None depends on the sources alone. The first of them is the one that is asked about.
        """

    def ask(self, sample: Sample) -> Mapping[str, str]:
        """Return the texts that take the places of the placeholders."""
        return {"question": sample.question, "options": prompts.option_lines(sample.options)}

    def gold(self, sample: Sample) -> str:
        """Return the completion that earns everything."""
        return prompts.completion(sample.meta["rationale"], sample.answer)
