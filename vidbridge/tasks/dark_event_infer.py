"""DarkEventInfer: one event of the video is blacked out; say what happened in the dark.

    {"problem": "What happens while the screen is black?", "solution": "<answer>the square grows</answer>",
     "video": "videos/0.mp4", "problem_type": "DarkEventInfer", "dark": [1.0, 2.0], ..}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft, Source
from vidbridge.types import Effect


@dataclass(frozen=True, kw_only=True)
class DarkEventInfer(Task):
    name = "dark_event_infer"
    problem_type = "DarkEventInfer"

    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        (source,) = sources
        # what was before and after must be seen
        inner = [event for event in source.events if 0 < event.start_s and event.end_s < source.duration_s]
        inner = [event for event in inner if event.inferable]
        if not inner:
            return None
        hidden = inner[rng.integers(len(inner))]
        return Draft(
            problem="What happens while the screen is black?",
            answer=hidden.text,
            effects=(Effect(name="dark", start_s=hidden.start_s, end_s=hidden.end_s),),
            notes=f"{source.notes(hidden)} Before {hidden.before}; after {hidden.after}." if hidden.before else "",
            meta={"dark": [hidden.start_s, hidden.end_s]},
        )
