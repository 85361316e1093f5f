"""Captioning: a video or images, to be told in full.

    {"problem": "Describe the video, event by event.", "solution": "<answer>First the square moves left, ..</answer>",
     "video": "videos/0.mp4", "problem_type": "caption", ..}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft, Source


@dataclass(frozen=True, kw_only=True)
class Caption(Task):
    name = "caption"
    problem_type = "caption"
    takes_images = True

    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        (source,) = sources
        if not source.caption:
            return None
        return Draft(
            problem="Describe the video, event by event." if source.duration_s else "Describe what the images show.",
            answer=source.caption,
            notes=source.notes(),
        )
