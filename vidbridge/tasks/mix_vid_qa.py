"""MixVidQA: two videos cut up and interleaved; answer a question about one of them.

    {"problem": "What does the square do first?", "solution": "<answer>the square moves left</answer>",
     "video": "videos/0.mp4", "problem_type": "MixVidQA", "pieces": [[0, 0.0, 1.7], [1, 0.0, 1.9], ..], ..}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from vidbridge.media.cuts import alternate
from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft, Source


@dataclass(frozen=True, kw_only=True)
class MixVidQA(Task):
    name = "mix_vid_qa"
    problem_type = "MixVidQA"
    num_sources = 2

    piece_s: tuple[float, float] = (1.5, 2.0)  # shortest and longest piece

    def __post_init__(self) -> None:
        match self.piece_s:
            case [int() | float() as shortest, int() | float() as longest] if 0 < shortest <= longest < math.inf:
                return
        raise ValueError(
            f"tasks.mix_vid_qa.piece_s must be two numbers, 0 < shortest <= longest, got {self.piece_s!r}"
        )

    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        """Either source may come first; the question is about the first of ``sources``."""
        asked, other = sources
        if asked.question is None:
            return None
        asked_index = int(rng.integers(2))
        order = (0, 1) if asked_index == 0 else (1, 0)  # of the sources, as they are shown
        pieces = alternate((sources[order[0]].duration_s, sources[order[1]].duration_s), self.piece_s, rng)
        return Draft(
            problem=asked.question.text,
            answer=asked.question.answer,
            segments=tuple(replace(piece, source=order[piece.source]) for piece in pieces),
            notes=asked.notes(),
            conclusion=f"{asked.question.found}." if asked.question.found else "",
            meta={
                "pieces": [[piece.source, round(piece.start_s, 3), round(piece.end_s, 3)] for piece in pieces],
                "asked": asked_index,
            },
        )
