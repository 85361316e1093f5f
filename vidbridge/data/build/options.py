"""What the commands of build_data.py are told besides the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, Mapping

from vidbridge.data.base import SPLITS, Dataset, NoRows
from vidbridge.tasks.base import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    folder: Path  # for whatever a command writes
    strict: bool = False
    number: int | None = None  # rows of each task and split; None: all, or as many as the command finds fit
    fps: int = 16


def filled_tasks(dataset: Dataset, tasks: Mapping[str, Task]) -> Iterator[tuple[str, Task]]:
    """Split and task with its rows, where there are any; what is wrong with a file is raised as the error it is."""
    for split in SPLITS:
        for task in tasks.values():
            try:
                rows = dataset.rows(task, split)
            except NoRows:
                continue
            yield split, replace(task, rows=rows)

