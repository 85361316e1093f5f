"""How many things happen?"""

from dataclasses import dataclass

from vidbridge.tasks.base import Task
from vidbridge.tasks.sources import Draft


@dataclass(frozen=True, kw_only=True)
class Counting(Task):
    name = "counting"
    problem_type = "Counting"

    letters: str = "ABC"

    def construct(self, sources, rng):
        (source,) = sources
        options = ("three", "four", "five")
        return Draft(
            problem="How many things happen?",
            answer=self.letters[len(source.events) - 3],
            options=options,
            notes=source.notes(),
        )
