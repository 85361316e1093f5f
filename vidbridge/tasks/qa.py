"""Question answering: a video or images, a question, options; the answer is a letter.

    {"problem": "What does the square do first?", "options": ["grows", "moves left", "spins", "hides"],
     "solution": "<answer>B</answer>", "video": "videos/0.mp4", "problem_type": "MCQA", ..}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft, Source
from vidbridge.text.options import LETTERS


@dataclass(frozen=True, kw_only=True)
class QA(Task):
    name = "qa"
    problem_type = "MCQA"
    takes_images = True
    placeholders = ("question", "options")

    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        (source,) = sources
        question = source.question
        if question is None or not question.options:
            return None
        return Draft(
            problem=question.text,
            answer=question.letter,
            options=question.options,
            notes=source.notes(),
            conclusion=f"{question.found}. {_read_until(question.letter, question.options)}." if question.found else "",
        )


def _read_until(letter: str, options: Sequence[str]) -> str:
    """The options one by one up to the right one: what a letter stands for is looked up by reading, not at a glance."""
    up_to = LETTERS.index(letter) + 1
    return ", ".join(f"{each} {option}" for each, option in zip(LETTERS[:up_to], options))
