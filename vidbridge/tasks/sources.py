"""What tasks make rows from, annotated videos, and what they make: a draft, whose video is not cut yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from vidbridge.media.effects import function_of
from vidbridge.text.options import LETTERS
from vidbridge.types import Effect, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedEvent:
    """One annotated event."""

    start_s: float
    end_s: float
    text: str  # "the square grows"
    inferable: bool = True  # whether it can be hidden and still be told from what is before and after
    noted: str = ""  # in short, with its place in the order: "second grows"
    before: str = ""  # how its subject looks until then: "small red square, left top"
    after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its answer as a phrase, and the options it may be asked with."""

    text: str
    answer: str
    found: str = ""  # where the notes on the video tell it: "So second grows"
    options: tuple[str, ...] = ()

    @property
    def letter(self) -> str:
        """Return the letter of the right option, whose text is the answer or its end ("the square grows", "grows")."""
        found = [index for index, option in enumerate(self.options) if self.answer == option]
        found = found or [index for index, option in enumerate(self.options) if self.answer.endswith(option)]
        assert len(found) == 1, self
        return LETTERS[found[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An annotated video that tasks make rows from; what it has no annotation for is empty."""

    duration_s: float  # 0: images in the place of a video
    events: tuple[TimedEvent, ...] = ()
    caption: str = ""
    question: Question | None = None
    subject: str = ""  # what the events are about, as it starts: "small red square, left top"

    def notes(self, hidden: TimedEvent | None = None) -> str:
        """Return a careful viewer's notes: "big red pie, left top: first grows, second dark, last hides." """
        if not self.subject:
            return ""
        noted = [f"{event.noted.split()[0]} dark" if event is hidden else event.noted for event in self.events]
        return f"{self.subject}: {', '.join(noted)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A new row before its video is cut: the released fields, typed extras, and what is shown of the sources."""

    problem: str
    answer: str
    segments: tuple[Segment, ...] = ()  # of the sources, one after another; none: the first source as it is
    effects: tuple[Effect, ...] = ()
    options: tuple[str, ...] = ()
    notes: str = ""  # reasoning: what is to be seen
    conclusion: str = ""  # reasoning: what follows from the notes and the question alone
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for effect in self.effects:
            function_of(effect)  # ValueError for a name or parameters that are wrong

    @property
    def rationale(self) -> str:
        return f"{self.notes} {self.conclusion}".strip()
