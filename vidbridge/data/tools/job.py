"""What the commands of build_data.py work on."""

from __future__ import annotations

import errno
import fcntl
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping

from vidbridge.data.dataset import SPLITS, Dataset
from vidbridge.errors import DataError, NoRows
from vidbridge.tasks.rows import TaskRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    dataset: Dataset
    tasks: Mapping[str, TaskRows]  # without rows
    folder: Path  # for whatever a command writes
    number: int | None = None  # rows of each task and split; None: all, or as many as the command finds fit

    def filled(self) -> list[tuple[str, TaskRows]]:
        """Return split and task with its rows, where there are any; what is wrong with a file is the error it is."""
        found, lacking = self.rows()
        if not found:
            raise NoRows("\n".join(["no task has a row in any split", *dict.fromkeys(lacking.values())]))
        return found

    def rows(self) -> tuple[list[tuple[str, TaskRows]], dict[str, str]]:
        """Return split and task with its rows, and why other splits of tasks have none."""
        found, lacking = [], {}
        for split in SPLITS:
            for task in self.tasks.values():
                try:
                    found.append((split, self.dataset.filled(task, split)))
                except NoRows as error:
                    lacking[f"{split}/{task.name}"] = str(error)
        return found, lacking

    def indices(self, task: TaskRows) -> range:
        return range(min(len(task), self.number or len(task)))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """DataError while another process works in the folder, for both would write the same files; and for a full disk."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another command works there; wait for it or choose another folder") from error
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(f"{folder}: the disk is full ({error}); make room and go on with resume=auto") from error
