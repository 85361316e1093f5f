"""What a data set is: the rows of every task by split, and the folder that their videos lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Mapping, Self, Sequence

from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.reader import VideoReader
from vidbridge.tasks.base import Task
from vidbridge.tasks.rows import Row, TaskRows

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    gold_is_perfect: ClassVar[bool] = False  # whether every gold answer earns the most there is, style included

    root: str  # nothing outside of it is read
    max_bad_frac: float = 0.0  # of the samples asked for; more that cannot be used stop the run

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_frac < 1:
            raise ValueError(f"data.max_bad_frac must lie in [0, 1), got {self.max_bad_frac}")

    @abstractmethod
    def rows(self, task: Task, split: str, frames: FrameBudget | None = None) -> Sequence[Row]:
        """Return all rows of a task's split; NoRows when there are none.

        ``frames`` are those that will be read: which rows there are may depend on what they can show.
        """

    def filled(self, task: TaskRows, split: str) -> TaskRows:
        """Return a task with its rows of a split."""
        return replace(task, rows=self.rows(task.task, split, task.frames))

    def lenient(self) -> Self:
        """Return the same without the rows that something is wrong with."""
        return self

    def row_problems(self, tasks: Sequence[Task] = ()) -> Sequence[str]:
        """Return what is wrong with its files and the rows of ``tasks``, where that does not stop it."""
        return ()

    def problem_types(self) -> Mapping[str, int]:
        """Return how many rows its files have of each, whether or not there is a task for it."""
        return {}

    @cached_property
    def reader(self) -> VideoReader:
        return VideoReader(self.root)
