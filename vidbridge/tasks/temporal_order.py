"""TemporalOrder: the events of a video are shown in a shuffled order; tell them in the order in which they happened.

    {"problem": "What happens from start to end?", "solution": "<answer>First the square grows, then ..</answer>",
     "video": "videos/0.mp4", "problem_type": "TemporalOrder", "shown": [2, 0, 1], ..}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft, Source
from vidbridge.types import Segment


@dataclass(frozen=True, kw_only=True)
class TemporalOrder(Task):
    name = "temporal_order"
    problem_type = "TemporalOrder"

    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        """Every event must leave a trace, and no state come twice: else more than one order would fit.

        That cannot be known of events whose states nobody wrote down.
        """
        (source,) = sources
        events = source.events
        states = [event.before for event in events if event.before]
        traced = all(event.inferable for event in events if event.before)
        if len(events) < 3 or not traced or len(set(states)) < len(states):
            return None
        shown = list(range(len(events)))
        while shown == sorted(shown):
            shown = [int(index) for index in rng.permutation(len(events))]
        texts = [event.text for event in events]
        return Draft(
            problem="What happens from start to end?",
            answer=f"First {', then '.join(texts[:-1])}, finally {texts[-1]}.",
            segments=tuple(Segment(source=0, start_s=events[at].start_s, end_s=events[at].end_s) for at in shown),
            notes=source.notes(),
            meta={"shown": shown},
        )
