"""During which event are red and blue swapped?"""

from dataclasses import dataclass

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft
from vidbridge.types import Effect


def swap(frames):
    return [frame.with_look(lambda pixels: pixels[..., ::-1]) for frame in frames]


@dataclass(frozen=True, kw_only=True)
class Swapped(Task):
    name = "swapped"
    problem_type = "Swapped"

    def construct(self, sources, rng):
        (source,) = sources
        if len(source.events) < 3:
            return None
        index = int(rng.integers(3))
        event = source.events[index]
        return Draft(
            problem="Which event has the wrong colours?",
            answer="ABC"[index],
            options=("first", "second", "third"),
            effects=(Effect(name="my_swapped.swap", start_s=event.start_s, end_s=event.end_s),),
            notes=source.notes(),
        )
