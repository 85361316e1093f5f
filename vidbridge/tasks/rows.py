"""The rows of a task, and the task bound to them: samples, and prompts with their videos read."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Mapping, Sequence

from vidbridge.errors import DataError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.frame_cache import Decode
from vidbridge.tasks.base import Task
from vidbridge.text import prompts
from vidbridge.text.options import LETTERS
from vidbridge.types import ImageRef, Montage, Prompt, Sample, VideoRef

MULTIPLE_CHOICE = "MCQA"  # the released problem type whose rows must have options


@contextmanager
def as_data_errors(uid: str) -> Iterator[None]:
    """While a row is worked on, a ValueError is about that row, and becomes a DataError with its uid."""
    try:
        yield
    except DataError:
        raise  # says where already
    except ValueError as error:
        raise DataError(f"{uid}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a task file: the released JSONL schema, then our extras.

    DataError for a row whose answer nobody could give: it is empty, or the letter of no option.
    """

    uid: str
    problem: str
    solution: str  # <answer>..</answer>
    video: str  # path, absolute after reading; empty where there are images alone
    problem_type: str
    images: tuple[str, ...] = ()  # paths likewise, of what is shown before the video
    options: tuple[str, ...] = ()
    rationale: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    shown: Montage | VideoRef | None = None  # where that is not the whole video as it is

    def __post_init__(self) -> None:
        if not self.video and not self.images:
            raise DataError(f"{self.uid}: neither a video nor an image is named")
        if not self.answer:
            raise DataError(f"{self.uid}: the answer in {self.solution!r} is empty")
        if not self.options and self.problem_type != MULTIPLE_CHOICE:
            return
        with as_data_errors(self.uid):
            check_choice(self.options, self.answer)

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
    def draw(self, index: int, epoch: int) -> Row: ...

    def __getitem__(self, index: Any) -> Any:
        return self.draw(index, 0)


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """A task bound to its rows, and to how they are shown: the frames that are read of a video, the words that ask."""

    task: Task
    rows: Sequence[Row] = ()
    frames: FrameBudget | None = None  # None: nothing is read
    read: Decode = decode
    template: prompts.PromptTemplate | None = None  # of conf/prompt; None: what ``ask`` says and nothing else

    @property
    def name(self) -> str:
        return self.task.name

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int) -> Sample:
        """Return the sample of row ``index``; past the last one the rows come round again."""
        epoch, number = divmod(index, len(self.rows))
        row = self.rows.draw(number, epoch) if isinstance(self.rows, DrawnRows) else self.rows[number]
        return Sample(
            uid=row.uid,
            task=self.name,
            question=row.problem,
            answer=row.answer,
            options=row.options,
            images=tuple(ImageRef(path=path) for path in row.images),
            videos=(row.shown or VideoRef(path=row.video),) if row.video else (),
            meta={"rationale": row.rationale, **row.meta},
            index=index,
        )

    def prompt(self, sample: Sample) -> Prompt:
        """Return the sample with all that it shows decoded; VideoError names the file that cannot be read."""
        assert self.frames is not None, "videos are read with a frame budget"
        clips = tuple(self.read(visual, self.frames) for visual in sample.shown)
        return Prompt(messages=self.messages(sample), clips=clips)

    def blind_prompt(self, sample: Sample) -> Prompt:
        """Return the sample in words alone."""
        return Prompt(messages=self.messages(replace(sample, images=(), videos=())), clips=())

    def messages(self, sample: Sample) -> prompts.Messages:
        """Return the sample in the words of the template, after the placeholders of what it shows."""
        bare = prompts.PromptTemplate(text="\n".join(f"{{{name}}}" for name in self.task.placeholders))
        return (self.template or bare).messages(
            self.task.ask(sample), num_images=len(sample.images), num_videos=len(sample.videos)
        )

    def gold(self, sample: Sample) -> str:
        return self.task.gold(sample)
