"""``data=raw``: proxy tasks made from annotated videos while they are read.

What is hidden and what is mixed is a function of (seed, pass over the rows, uid).
"""

from __future__ import annotations

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from vidbridge.data.dataset import SPLITS
from vidbridge.data.file_dataset import FileDataset, check_split, leave_out, split_by_video, without_rows
from vidbridge.data.formats.annotations import Annotation, read_annotations
from vidbridge.data.rows import listed
from vidbridge.errors import DataError, NoRows, VideoError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.tasks.base import Task
from vidbridge.tasks.rows import DrawnRows, Row
from vidbridge.tasks.sources import Question, Source, TimedEvent
from vidbridge.types import Montage, VideoRef

# Annotations are often some seconds off, of a video that was cut or encoded anew since: that goes without saying.
LITTLE_S, LITTLE_FRAC = 2.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Raw(FileDataset):
    """A task takes the videos that have what it asks for: events, a question, options, a caption."""

    annotations: Sequence[str]  # files; see annotations.py
    video_name: str = "{id}.mp4"
    seed: int = 0
    max_duration_ratio: float = 1.5  # of two videos that are mixed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.annotations:
            raise ValueError("data.annotations must name at least one file")
        if self.max_duration_ratio < 1:
            raise ValueError(f"data.max_duration_ratio must be at least 1, got {self.max_duration_ratio}")

    def rows(self, task: Task, split: str, frames: FrameBudget | None = None) -> Sequence[Row]:
        """Return the rows of a task. Which events can be hidden depends on the frames that are seen."""
        assert frames is not None, "rows of annotated videos are drawn for a frame budget"
        check_split(split)
        rows = self._rows_of(task, split, frames, self.held_out_frac)
        if not len(rows):
            raise self._no_rows(task, split, frames)
        return rows

    def _rows_of(self, task: Task, split: str, frames: FrameBudget, held_out_frac: float | None) -> RawRows:
        """Return the rows of a split; without a fraction, those of all videos together."""
        mine = self.annotated
        if held_out_frac is not None:
            mine = [each for each in mine if split_by_video(each.source, held_out_frac) == split]
        return RawRows(task, split, mine, frames, seed=self.seed, max_duration_ratio=self.max_duration_ratio)

    def _no_rows(self, task: Task, split: str, frames: FrameBudget) -> NoRows:
        files, videos = ", ".join(self.annotations), {each.source for each in self.annotated}
        mine = sum(split_by_video(video, self.held_out_frac) == split for video in videos)
        part = f"{split} split: {mine} of {len(videos)} videos, with data.held_out_frac={self.held_out_frac:g}"
        if len(self._rows_of(task, split, frames, None)):  # it is a matter of which videos are set aside
            why = f"{files}: the {part}, " + ("is empty" if not mine else f"has nothing that {task.name} needs")
            return without_rows(
                why,
                task.name,
                split,
                self.held_out_frac,
                lambda frac: all(len(self._rows_of(task, each, frames, frac)) for each in SPLITS),
            )
        known = {
            "events": sum(bool(each.events) for each in self.annotated),
            "a question": sum(bool(each.question) for each in self.annotated),
            "options": sum(bool(each.options) for each in self.annotated),
            "a caption": sum(bool(each.caption) for each in self.annotated),
        }
        told = ", ".join(f"{number} {what}" for what, number in known.items())
        what = f"{files}: no video has what {task.name} needs; of {len(self.annotated)}, {told}"
        return NoRows(f"{what}\n{leave_out(task.name)}")

    @cached_property
    def annotated(self) -> list[Annotation]:
        """Return all videos, or parts of them, that can be opened; none goes on after the end of its file.

        Images are not opened before they are shown.
        """
        self.refuse(self._read[1])
        durations, unreadable = self._durations
        if unreadable:
            told = f"{len(unreadable)} of {len(durations)} videos cannot be opened\n{listed(unreadable)}"
            if len(unreadable) > self.max_bad_frac * len(durations):
                raise DataError(f"{told}\nthat is more than data.max_bad_frac={self.max_bad_frac:g} allows")
            print(f"left out: {told}", file=sys.stderr)
        if beyond := [*self._too_long, *self._beyond]:
            print(f"left out, {len(beyond)} after the end:\n{listed(beyond)}", file=sys.stderr)
        return [each for each in self._timed if not each.video or length_s(each) > 0]

    def row_problems(self, tasks: Sequence[Task] = ()) -> Sequence[str]:
        return [*self._read[1], *self._durations[1], *self._too_long, *self._beyond]

    @cached_property
    def _timed(self) -> list[Annotation]:
        """Return the annotations of videos that can be opened, cut to what the file and the annotation both have."""
        timed = []
        for each in self._read[0]:
            if not each.video:
                timed.append(each)
            elif lasts_s := self._durations[0][each.video]:
                timed.append(replace(each, duration_s=min(each.duration_s or lasts_s, lasts_s)))
        return timed

    @cached_property
    def _too_long(self) -> list[str]:
        """Annotations of a video that is longer than the file, by more than two copies of it may differ."""
        found = []
        for each in self._read[0]:
            lasts_s = self._durations[0].get(each.video)
            if lasts_s and each.duration_s and each.duration_s - lasts_s > max(LITTLE_S, LITTLE_FRAC * each.duration_s):
                told = f"annotated as {each.duration_s:g} s long, {each.video} lasts {lasts_s:.2f} s"
                found.append(f"{each.uid}: {told}: is it the same video?")
        return found

    @cached_property
    def _beyond(self) -> list[str]:
        """Parts and events that begin when their video is over: no frame shows them."""
        found = []
        for each in filter(attrgetter("video"), self._timed):
            lasts_s = length_s(each)
            if lasts_s <= 0:
                found.append(f"{each.uid}: starts at {each.start_s:g} s, {each.video} ends at {each.duration_s:g} s")
                continue
            late = [(start_s, text) for start_s, _, text in each.events if start_s >= lasts_s]
            found += [f"{each.uid}: {text!r} starts at {start_s:g} s, after {lasts_s:g} s" for start_s, text in late]
        return found

    @cached_property
    def _read(self) -> tuple[list[Annotation], list[str]]:
        """Return the annotations of all files, and what is wrong with them."""
        found: list[Annotation] = []
        problems: list[str] = []
        uids: dict[str, str] = {}
        for file in self.annotations:
            of_file, faults = read_annotations(Path(file), self.video_name, uids)
            found, problems = found + of_file, problems + faults
        return found, problems

    @cached_property
    def _durations(self) -> tuple[dict[str, float | None], list[str]]:
        """Return how long each file is, whatever its annotation says; None and a problem for what does not open."""
        videos = list(dict.fromkeys(each.video for each in self._read[0] if each.video))
        problems: list[str] = []

        def duration_s(video: str) -> float | None:
            try:
                return self.reader.duration_s(video)
            except VideoError as error:
                bare = (Path(self.root) / video).with_suffix("")  # an id that is the name of a file
                hint = f"; {bare.name} is there: data.video_name=\"'{{id}}'\"?" if bare.is_file() else ""
                problems.append(str(error) + (hint if error.reason == "missing" else ""))
                return None

        with ThreadPoolExecutor(self.reader.width) as pool:
            return dict(zip(videos, pool.map(duration_s, videos))), sorted(problems)


def to_source(known: Annotation, frames: FrameBudget) -> Source:
    """Times count from the start of the part; an event can be hidden if frames show it, and what is around it."""
    question = Question(text=known.question, answer=known.answer, options=known.options) if known.question else None
    if not known.video:
        return Source(duration_s=0.0, caption=known.caption, question=question)
    lasts_s = length_s(known)
    times_s = frames.times(lasts_s)
    events = []
    for start_s, end_s, text in known.events:
        inside = (times_s >= start_s) & (times_s < end_s)
        around = bool((times_s < start_s).any() and (times_s >= end_s).any())
        events.append(TimedEvent(start_s=start_s, end_s=end_s, text=text, inferable=bool(inside.any()) and around))
    return Source(duration_s=lasts_s, events=tuple(events), caption=known.caption, question=question)


def part(known: Annotation) -> VideoRef:
    """Return the part of the file that is annotated, with an end."""
    assert known.duration_s is not None
    end_s = known.duration_s if known.end_s is None else min(known.end_s, known.duration_s)
    return VideoRef(path=known.video, start_s=known.start_s, end_s=end_s)


def length_s(known: Annotation) -> float:
    """Return how long the annotated part is; 0 or less where it starts after the end of its file."""
    there = part(known)
    assert there.end_s is not None
    return there.end_s - there.start_s


class RawRows(DrawnRows):
    """The rows of a task that annotations allow. Several sources: the others are of about the same length.

    A task that does not take images passes over what has some.
    """

    def __init__(
        self,
        task: Task,
        split: str,
        annotations: Sequence[Annotation],
        frames: FrameBudget,
        *,
        seed: int,
        max_duration_ratio: float,
    ) -> None:
        self.task, self.split, self.seed = task, split, seed
        annotations = [known for known in annotations if task.takes_images or not known.images]
        sources = [(known, to_source(known, frames)) for known in annotations]
        sources = [(known, source) for known, source in sources if source.duration_s > 0 or not known.video]
        self._all = sorted(sources, key=lambda each: (each[1].duration_s, each[0].uid))
        self._lengths = np.array([source.duration_s for _, source in self._all])
        self._ratio = max_duration_ratio
        # whether a task can make use of a video depends on the video alone
        self._asked = [
            at
            for at, (_, source) in enumerate(self._all)
            if task.construct([source] * task.num_sources, np.random.default_rng(0)) is not None
            and (task.num_sources == 1 or any(map(self._mixes_with(at), range(*self._window(at)))))
        ]

    def __len__(self) -> int:
        return len(self._asked)

    def draw(self, index: int, epoch: int) -> Row:
        at = self._asked[index]
        known = self._all[at][0]
        uid = f"{self.task.name}/{self.split}/{known.uid}"
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(uid.encode())])
        chosen = [at]
        while len(chosen) < self.task.num_sources:
            partner = int(rng.integers(*self._window(at)))
            if self._mixes_with(at)(partner):
                chosen.append(partner)
        draft = self.task.construct([self._all[each][1] for each in chosen], rng)
        assert draft is not None, uid
        return Row(
            uid=uid,
            problem=draft.problem,
            solution=f"<answer>{draft.answer}</answer>",
            video=known.video,
            images=known.images,
            problem_type=self.task.problem_type,
            options=draft.options,
            rationale=draft.rationale,
            meta={**draft.meta, "epoch": epoch, "sources": [self._all[each][0].source for each in chosen]},
            shown=Montage(
                sources=tuple(part(self._all[each][0]) for each in chosen),
                segments=draft.segments,
                effects=draft.effects,
            )
            if known.video
            else None,
        )

    def _window(self, at: int) -> tuple[int, int]:
        """Return the range (start, stop) of annotations of about the same length as number ``at``."""
        lasts_s = self._lengths[at]
        bounds = [lasts_s / self._ratio, np.nextafter(lasts_s * self._ratio, np.inf)]
        low, high = np.searchsorted(self._lengths, bounds)
        return int(low), int(high)

    def _mixes_with(self, at: int) -> Callable[[int], bool]:
        video = self._all[at][0].video
        return lambda other: self._all[other][0].video != video
