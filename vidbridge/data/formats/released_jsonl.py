"""``data=vidbridge_r1``: the released JSONL as it is, all tasks in one file.

    {"problem": "What ..?\\nA. ..\\nB. ..", "solution": "<answer>B</answer>", "video": "a.mp4", "problem_type": "MCQA"}

A row may have "images": ["a.jpg", ..] in the place of the video, or beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from vidbridge.data.dataset import SPLITS
from vidbridge.data.file_dataset import FileDataset, check_split, leave_out, without_rows
from vidbridge.data.formats.jsonl import JsonlIndex, JsonlRows
from vidbridge.errors import NoRows
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.tasks.base import Task
from vidbridge.tasks.rows import Row


@dataclass(frozen=True, kw_only=True)
class VidbridgeR1(FileDataset):
    """A split without a file of its own is a part of the training videos, which training then leaves out."""

    files: Mapping[str, str | None]  # by split; train is needed
    video_prefix: str = ""  # what the paths in the files start with where ``root`` stands here

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(map(str, self.files.keys() - set(SPLITS)))
        if unknown:
            raise ValueError(f"data.files: unknown split {', '.join(unknown)}; there are {', '.join(SPLITS)}")
        if not self.files.get("train"):
            raise ValueError("data.files.train must name a JSONL file")

    def rows(self, task: Task, split: str, frames: FrameBudget | None = None) -> Sequence[Row]:
        check_split(split)
        own = self.files.get(split)
        index = self._index(own or self.files["train"])
        everywhere = self._taken(index, task)
        whole = bool(own) and split != "train"
        rows = everywhere if whole else self._part(index, everywhere, split, self.held_out_frac)
        if not len(everywhere) or (whole and not len(rows)):
            raise NoRows(
                f"{index.path}: no row has problem_type '{task.problem_type}'; "
                f"there are {', '.join(index.problem_types)}\n{leave_out(task.name)}"
            )
        if not len(rows):
            raise without_rows(
                f"{index.path}: no {split} row has problem_type '{task.problem_type}', with "
                f"data.held_out_frac={self.held_out_frac:g} and no data.files.{split}",
                task.name,
                split,
                self.held_out_frac,
                lambda frac: all(
                    len(self._part(index, everywhere, each, frac))
                    for each in SPLITS
                    if each == "train" or not self.files.get(each)
                ),
            )
        return JsonlRows(index, rows, task.problem_type, self.whole_path)

    def row_problems(self, tasks: Sequence[Task] = ()) -> Sequence[str]:
        """Return what is wrong with rows of all its files, whether or not they are skipped."""
        indices = [JsonlIndex.of(Path(file)) for file in self.files.values() if file]
        return [line for index in indices for line in (*index.problems, *self._with_images(index, tasks))]

    def problem_types(self) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for index in map(self._index, filter(None, self.files.values())):
            counts.update({name: len(index.rows(name)) for name in index.problem_types})
        return counts

    def whole_path(self, path: str) -> str:
        """Relative to ``root``, or an absolute path, which must lie in it."""
        return path.removeprefix(self.video_prefix).lstrip("/") if self.video_prefix else path

    def _taken(self, index: JsonlIndex, task: Task) -> np.ndarray:
        """Return which rows are the task's; those with images are refused where it is made of videos."""
        rows = index.rows(task.problem_type)
        self.refuse(self._with_images(index, [task]))
        return rows if task.takes_images else rows[~index.has_images[rows]]

    def _with_images(self, index: JsonlIndex, tasks: Sequence[Task]) -> list[str]:
        """Return a problem for each row with images of tasks that are made of videos."""
        problems = []
        for task in tasks:
            rows = index.rows(task.problem_type)
            wrong = [] if task.takes_images else index.numbers[rows[index.has_images[rows]]]
            why = f"field 'images': {task.name} is made of a video, not of images"
            problems += [f"{index.path}:{number}: {why}" for number in wrong]
        return problems

    def _part(self, index: JsonlIndex, rows: np.ndarray, split: str, held_out_frac: float) -> np.ndarray:
        """Return which of ``rows`` of the training file belong to a split (``split_by_video``)."""
        at = index.videos[rows] / 2**32
        parts = np.full(len(rows), SPLITS.index("train"))
        for name, low in (("val", 0.0), ("test", held_out_frac)):
            if not self.files.get(name):
                parts[(low <= at) & (at < low + held_out_frac)] = SPLITS.index(name)
        return rows[parts == SPLITS.index(split)]

    @cached_property
    def _indices(self) -> dict[str, JsonlIndex]:
        return {}

    def _index(self, file: str | None) -> JsonlIndex:
        assert file is not None
        if file not in self._indices:
            index = JsonlIndex.of(Path(file))
            self.refuse(index.problems)
            self._indices[file] = index
        return self._indices[file]
