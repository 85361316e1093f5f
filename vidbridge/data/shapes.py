"""``data=shapes``: rows of any task made from the embedded world, as real mp4 files, cached by content."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Mapping, Sequence

import numpy as np

from vidbridge.data import rows as task_files
from vidbridge.data import world
from vidbridge.data.base import SPLITS, Dataset, NoRows
from vidbridge.data.rows import read_rows, write_rows
from vidbridge.media import edit, write
from vidbridge.progress import track
from vidbridge.tasks.base import Draft, Row, Source, Task, video_path
from vidbridge.text import shapes_language
from vidbridge.types import Clip

_MAKERS = (sys.modules[__name__], world, edit, write, shapes_language, task_files)  # and the task itself


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

    def rows(self, task: Task, split: str) -> Sequence[Row]:
        """All rows of a task's split, generated when they are not on disk yet."""
        if split not in self.num_rows:
            raise NoRows(f"data.num_rows.{split} is not set, so there are no {split} rows of {task.name}: set it")
        folder = Path(self.root).absolute() / f"{task.name}-{split}-{self._fingerprint(task, split)}"
        if not folder.is_dir():
            self._generate(task, split, folder)
        return read_rows(folder / "rows.jsonl", task.problem_type)

    def _fingerprint(self, task: Task, split: str) -> str:
        """Of everything the rows depend on: settings, and the code that draws, renders, edits and writes."""
        bound = ("template", "rows", "frames", "read")  # to a run; the rest makes the rows
        settings = {f.name: getattr(task, f.name) for f in fields(task) if f.name not in bound}
        digest = hashlib.sha256(json.dumps([self.seed, split, self.num_rows[split], settings]).encode())
        of_task = [kind.__module__ for kind in type(task).__mro__ if kind.__module__ not in ("builtins", "abc")]
        for module in (*_MAKERS, *(sys.modules[name] for name in of_task)):
            digest.update(inspect.getsource(module).encode())
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

    def _make_row(self, task: Task, split: str, index: int, folder: Path) -> Row:
        # a task is its name's bytes in the seed: adding a task changes no other's rows
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index, *task.name.encode()])
        draft: Draft | None = None
        while draft is None:
            scenes, sources = draw_sources(rng, split, task.num_sources)
            draft = task.construct(sources, rng)
        uid = f"{task.name}/{split}/{index}"
        path = video_path(folder, uid)
        write.write_mp4(cut([world.render(scene) for scene in scenes], draft), path, fps=world.FPS)
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


def cut(clips: Sequence[Clip], draft: Draft) -> Clip:
    """What the draft shows of its sources."""
    clip = edit.interleave(clips, draft.pieces) if draft.pieces else clips[0]
    return clip if draft.dark_s is None else edit.blackout(clip, *draft.dark_s)


def draw_sources(rng: np.random.Generator, split: str, number: int) -> tuple[list[world.Scene], list[Source]]:
    """Scenes of one split, equally long; no two show the same shape, so a question can name its clip."""
    num_events = int(rng.integers(3, 6))
    scenes: list[world.Scene] = []
    sources: list[Source] = []
    shapes: tuple[str, ...] = shapes_language.SHAPES
    while len(sources) < number:
        left = number - len(sources) - 1
        scene = world.draw_scene(rng, num_events, shapes)
        if split_of(scene) == split and len(shapes) - len(scene.shapes) >= left:
            scenes.append(scene)
            sources.append(world.describe(scene, rng))
            shapes = tuple(shape for shape in shapes if shape not in scene.shapes)
    return scenes, sources
