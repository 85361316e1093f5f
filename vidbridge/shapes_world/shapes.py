"""``data=shapes``: rows of any task made from the embedded world, as real mp4 files, cached by content."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.data.dataset import SPLITS, Dataset
from vidbridge.data.rows import read_rows, write_rows
from vidbridge.errors import NoRows
from vidbridge.media import write
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.montage import in_files, render
from vidbridge.runtime.progress import track
from vidbridge.shapes_world import language, world
from vidbridge.tasks.base import Task
from vidbridge.tasks.rows import Row, as_data_errors
from vidbridge.tasks.sources import Draft, Source
from vidbridge.types import Clip, Montage, Segment, VideoRef

VERSION = 1  # of how rows are drawn, rendered and written: another number makes all of them anew
_COMPARED = 8  # rows of a task that tell whether it asks what it asked when its files were made


@dataclass(frozen=True, kw_only=True)
class Shapes(Dataset):
    """Rows on first use: drawn from ``seed``, rendered, encoded, and kept under ``root``.

    A scene belongs to one split for good (by a hash of what happens in it), so that no clip of a held-out
    split, nor a re-rendering of it, can be met in training.
    """

    gold_is_perfect = True

    seed: int
    num_rows: Mapping[str, int]  # of each task, by split
    workers: int = 2  # clips encoded at once

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_rows, Mapping):
            raise ValueError(f"data.num_rows must have a number for each split, got {self.num_rows!r}")
        unknown = sorted(map(str, self.num_rows.keys() - set(SPLITS)))
        if unknown:
            raise ValueError(f"data.num_rows: unknown split {', '.join(unknown)}; there are {', '.join(SPLITS)}")
        counts = {f"num_rows.{split}": number for split, number in self.num_rows.items()} | {"workers": self.workers}
        for name, number in counts.items():
            if type(number) is not int or number < 1:  # True is an int too
                raise ValueError(f"data.{name} must be a whole number of at least 1, got {number!r}")

    def rows(self, task: Task, split: str, frames: FrameBudget | None = None) -> Sequence[Row]:
        """Return all rows of a task's split, generated when they are not on disk yet."""
        if split not in self.num_rows:
            raise NoRows(f"data.num_rows.{split} is not set, so there are no {split} rows of {task.name}: set it")
        folder = Path(self.root).absolute() / f"{task.name}-{split}-{self._fingerprint(task, split)}"
        if not folder.is_dir():
            self._generate(task, split, folder)
        return read_rows(folder / "rows.jsonl", task.problem_type)

    def _fingerprint(self, task: Task, split: str) -> str:
        """Return the hash of everything the rows depend on: settings, the version, and what the task asks in a few."""
        settings = [VERSION, self.seed, split, self.num_rows[split], vars(task)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for index in range(min(_COMPARED, self.num_rows[split])):
            digest.update(repr(self._drawn(task, split, index)).encode())
        return digest.hexdigest()[:12]

    def _generate(self, task: Task, split: str, folder: Path) -> None:
        """Fill ``folder``, which appears whole or not at all; another process may be making the same one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as partial:
            fresh, number = Path(partial) / folder.name, self.num_rows[split]
            (fresh / "videos").mkdir(parents=True)
            with ThreadPoolExecutor(self.workers) as pool:
                made = pool.map(lambda index: self._make_row(task, split, index, fresh), range(number))
                rows = list(track(made, f"shapes: {task.name} {split}", number))
            write_rows(rows, fresh / "rows.jsonl")
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.is_dir():  # else the other one was faster, and its rows are the same
                    raise

    def _drawn(self, task: Task, split: str, index: int) -> tuple[Sequence[world.Scene], Draft]:
        """Return the scenes of a row and what the task makes of them; nothing is rendered yet."""
        # a task is its name's bytes in the seed: adding a task changes no other's rows
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index, *task.name.encode()])
        while True:
            scenes, sources = draw_sources(rng, split, task.num_sources)
            if (draft := task.construct(sources, rng)) is not None:
                return scenes, draft

    def _make_row(self, task: Task, split: str, index: int, folder: Path) -> Row:
        scenes, draft = self._drawn(task, split, index)
        uid = f"{task.name}/{split}/{index}"
        path = folder / "videos" / f"{index}.mp4"
        with as_data_errors(uid):  # an effect without a frame
            clip = cut([world.render(scene) for scene in scenes], draft)
        write.write_mp4(clip, path, fps=world.FPS)
        return Row(
            uid=uid,
            problem=draft.problem,
            solution=f"<answer>{draft.answer}</answer>",
            video=str(path),
            problem_type=task.problem_type,
            options=draft.options,
            rationale=draft.rationale,
            meta={"notes": draft.notes, **draft.meta},
        )


def split_of(scene: world.Scene) -> str:
    """Four scenes in six are for training, one for validation, one for test."""
    told = f"{scene.actor} {scene.kinds}"  # not the bystander or the background: they change nothing that is asked
    bucket = hashlib.sha256(told.encode()).digest()[0] % 6
    return ("train", "train", "train", "train", "val", "test")[bucket]


class Film:
    """A rendered scene as a source of frames."""

    def __init__(self, clip: Clip) -> None:
        self.frames = clip.frames
        self.duration_s = len(clip.frames) / world.FPS
        self.height, self.width = clip.frames.shape[1:3]

    def frames_at(self, times_s: Iterable[float]) -> Iterator[np.ndarray]:
        return (self.frames[int(time_s * world.FPS)] for time_s in times_s)


def cut(clips: Sequence[Clip], draft: Draft) -> Clip:
    """Return what the draft shows of its sources, frame by frame."""
    montage = Montage(
        sources=tuple(VideoRef(path=f"scene {number}") for number in range(len(clips))),
        segments=tuple(whole_frames(draft.segments)),
        effects=draft.effects,
    )
    films = {segment.source: Film(clips[segment.source]) for segment in in_files(montage)}
    return render(montage, films, FrameBudget(fps=world.FPS, max_frames=10**6, min_pixels=1, max_pixels=1))


def whole_frames(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield the segments with the frames that begin in them, so that none is lost or shown twice at a cut."""
    for segment in segments:
        start_s, end_s = (math.ceil(time_s * world.FPS) / world.FPS for time_s in (segment.start_s, segment.end_s))
        if start_s < end_s:
            yield replace(segment, start_s=start_s, end_s=end_s)


def draw_sources(rng: np.random.Generator, split: str, number: int) -> tuple[list[world.Scene], list[Source]]:
    """Scenes of one split, equally long; no two show the same shape, so a question can name its clip."""
    num_events = int(rng.integers(3, 6))
    scenes: list[world.Scene] = []
    sources: list[Source] = []
    shapes: tuple[str, ...] = language.SHAPES
    while len(sources) < number:
        left = number - len(sources) - 1
        scene = world.draw_scene(rng, num_events, shapes)
        if split_of(scene) == split and len(shapes) - len(scene.shapes) >= left:
            scenes.append(scene)
            sources.append(world.describe(scene, rng))
            shapes = tuple(shape for shape in shapes if shape not in scene.shapes)
    return scenes, sources
