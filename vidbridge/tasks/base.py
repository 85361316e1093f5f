"""What a task is: how a row is made out of annotated videos, what the model is asked, what a right answer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Iterator, Mapping, Self, Sequence

import numpy as np

from vidbridge.errors import DataError
from vidbridge.media.decode import decode
from vidbridge.media.edit import Piece
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.frame_cache import Decode
from vidbridge.text import prompts
from vidbridge.text.options import LETTERS
from vidbridge.types import Montage, Prompt, Sample, VideoRef

MULTIPLE_CHOICE = "MCQA"  # the released problem type whose rows must have options


@contextmanager
def as_data_errors(sample: Sample) -> Iterator[None]:
    """While a sample is worked on, a ValueError is about that sample, and becomes a DataError with its uid."""
    try:
        yield
    except DataError:
        raise  # says where already
    except ValueError as error:
        raise DataError(f"{sample.uid}: {error}") from error


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
        places = [index for index, option in enumerate(self.options) if self.answer == option]
        places = places or [index for index, option in enumerate(self.options) if self.answer.endswith(option)]
        assert len(places) == 1, self
        return LETTERS[places[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An annotated video that tasks make rows from; what it has no annotation for is empty."""

    duration_s: float
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
    pieces: tuple[Piece, ...] = ()  # one after another; empty: the first source as it is
    dark_s: tuple[float, float] | None = None  # in which the screen is black
    options: tuple[str, ...] = ()
    notes: str = ""  # reasoning: what is to be seen
    conclusion: str = ""  # reasoning: what follows from the notes and the question alone
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rationale(self) -> str:
        return f"{self.notes} {self.conclusion}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a task file: the released JSONL schema, then our extras.

    DataError for a row whose answer nobody could give: it is empty, or the letter of no option.
    """

    uid: str
    problem: str
    solution: str  # <answer>..</answer>
    video: str  # path, absolute after reading
    problem_type: str
    options: tuple[str, ...] = ()
    rationale: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    shown: Montage | VideoRef | None = None  # where that is not the whole video as it is

    def __post_init__(self) -> None:
        if not self.answer:
            raise DataError(f"{self.uid}: the answer in {self.solution!r} is empty")
        if not self.options and self.problem_type != MULTIPLE_CHOICE:
            return
        try:
            check_choice(self.options, self.answer)
        except ValueError as error:
            raise DataError(f"{self.uid}: {error}") from error

    @property
    def answer(self) -> str:
        return self.solution.removeprefix("<answer>").removesuffix("</answer>").strip()


def check_choice(options: Sequence[str], letter: str) -> None:
    """ValueError unless these can be offered, and ``letter`` is that of one which is unlike the others.

    Wrong options may be equal: published benchmarks have such rows, and score the letter.
    """
    plain = [" ".join(option.lower().split()) for option in options]
    if not 2 <= len(plain) <= len(LETTERS) or "" in plain:
        raise ValueError(f"options must be 2 to {len(LETTERS)} texts, none of them empty, found {[*options]}")
    letters = LETTERS[: len(options)]
    if letter not in list(letters):
        raise ValueError(f"the answer must be a letter from A to {letters[-1]}, found {letter!r}")
    if plain.count(plain[LETTERS.index(letter)]) > 1:
        raise ValueError(f"the right option must be unlike the others, found {letter} of {[*options]}")


class DrawnRows(Sequence[Row]):
    """Rows that are drawn anew in each pass: another event hidden, another video mixed in."""

    @abstractmethod
    def draw(self, place: int, epoch: int) -> Row: ...

    def __getitem__(self, place: Any) -> Any:
        return self.draw(place, 0)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task over its rows. A new one is a subclass with ``construct``, and a yaml with its target and its template."""

    name: ClassVar[str]
    problem_type: ClassVar[str]  # its name in the released JSONL
    num_sources: ClassVar[int] = 1
    placeholders: ClassVar[tuple[str, ...]] = ("question",)  # all that its template must have, and may

    template: prompts.PromptTemplate | None = None  # of conf/prompt; None: what ``ask`` says and nothing else
    rows: Sequence[Row] = ()
    frames: FrameBudget | None = None
    read: Decode = decode  # how its videos are read

    @abstractmethod
    def construct(self, sources: Sequence[Source], rng: np.random.Generator) -> Draft | None:
        """A row out of ``num_sources`` annotated videos; None when these do not lend themselves to it.

        Whether it is None depends on the sources alone. The first of them is the one that is asked about.
        """

    def ask(self, sample: Sample) -> Mapping[str, str]:
        """The texts that take the places of the placeholders."""
        return {"question": sample.question, "options": prompts.option_lines(sample.options)}

    def with_rows(self, rows: Sequence[Row], frames: FrameBudget, read: Decode = decode) -> Self:
        return replace(self, rows=rows, frames=frames, read=read)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int) -> Sample:
        """Return the sample of row ``index``; past the last one the rows come round again."""
        epoch, place = divmod(index, len(self.rows))
        row = self.rows.draw(place, epoch) if isinstance(self.rows, DrawnRows) else self.rows[place]
        return Sample(
            uid=row.uid,
            task=self.name,
            question=row.problem,
            answer=row.answer,
            options=row.options,
            videos=(row.shown or VideoRef(path=row.video),),
            meta={"rationale": row.rationale, **row.meta},
            index=index,
        )

    def prompt(self, sample: Sample) -> Prompt:
        """Decodes the sample's videos; raises VideoError naming the file that cannot be read."""
        assert self.frames is not None, "with_rows gives a task its frame budget"
        clips = tuple(self.read(video, self.frames) for video in sample.videos)
        return Prompt(messages=self.messages(sample, num_videos=len(clips)), clips=clips)

    def messages(self, sample: Sample, *, num_videos: int = 1) -> prompts.Messages:
        """The sample in the words of the template."""
        bare = prompts.PromptTemplate(text="\n".join(f"{{{name}}}" for name in self.placeholders))
        return (self.template or bare).messages(self.ask(sample), num_videos=num_videos)

    def gold(self, sample: Sample) -> str:
        """The completion that earns everything."""
        return prompts.completion(sample.meta["rationale"], sample.answer)


def video_path(folder: Path, uid: str) -> Path:
    return folder / "videos" / f"{uid.rsplit('/', 1)[-1]}.mp4"
