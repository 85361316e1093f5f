"""``data=vidbridge_r1``: the released JSONL as it is, all tasks in one file.

    {"problem": "What ..?\\nA. ..\\nB. ..", "solution": "<answer>B</answer>", "video": "a.mp4", "problem_type": "MCQA"}
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from vidbridge.data.base import SPLITS, NoRows
from vidbridge.data.files import FileDataset, check_split
from vidbridge.data.jsonl import JsonlIndex, JsonlRows
from vidbridge.tasks.base import Row, Task


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

    def rows(self, task: Task, split: str) -> Sequence[Row]:
        check_split(split)
        own = self.files.get(split)
        index = self._index(own or self.files["train"])
        places = index.places(task.problem_type)
        if not own or split == "train":
            places = places[self._parts(index)[places] == SPLITS.index(split)]
        if not len(places):
            part = "" if own else f", with data.held_out_frac={self.held_out_frac:g} and no data.files.{split}"
            raise NoRows(f"{index.path}: no {split} row has problem_type '{task.problem_type}'{part}")
        return JsonlRows(index, places, task.problem_type, self.video_path)

    def row_problems(self) -> Sequence[str]:
        """Of all its files, whether or not they are skipped."""
        return [line for file in self.files.values() if file for line in JsonlIndex.of(Path(file)).problems]

    def problem_types(self) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for index in map(self._index, filter(None, self.files.values())):
            counts.update({name: len(index.places(name)) for name in index.problem_types})
        return counts

    def video_path(self, video: str) -> str:
        """Relative to ``root``, or an absolute path, which must lie in it."""
        return video.removeprefix(self.video_prefix).lstrip("/") if self.video_prefix else video

    def _parts(self, index: JsonlIndex) -> np.ndarray:
        """[n] the split of each row of the training file; see files.split_by_video."""
        place = index.videos / 2**32
        parts = np.zeros(len(place), np.int64)
        for split, low in (("val", 0.0), ("test", self.held_out_frac)):
            if not self.files.get(split):
                parts[(low <= place) & (place < low + self.held_out_frac)] = SPLITS.index(split)
        return parts

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
