"""What data sets of one's own video files share: processes that read them, a cache, and splits that share no video."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Callable, ClassVar, Self, Sequence

from vidbridge.data.dataset import SPLITS, Dataset
from vidbridge.data.rows import listed
from vidbridge.errors import DataError, NoRows
from vidbridge.media.reader import VideoReader

_FRACS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.49)


@dataclass(frozen=True, kw_only=True)
class FileDataset(Dataset):
    section: ClassVar[str] = "data"  # of the configuration, for messages

    workers: int = 2  # processes that decode
    deadline_s: float = 60.0  # for one video
    cache: str = ".cache/frames"  # of decoded frames
    cache_gb: float = 0.0  # 0: none
    skip_bad_rows: bool = False  # else one bad line stops the run before it starts
    held_out_frac: float = 0.02  # of the videos, for each split that has no file of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise ValueError(f"data.workers must be 0 (decode in the training process) or more, got {self.workers}")
        if self.deadline_s <= 0:
            raise ValueError(f"data.deadline_s must be positive, got {self.deadline_s}")
        if self.cache_gb < 0:
            raise ValueError(f"data.cache_gb must be 0 (no cache) or positive, got {self.cache_gb}")
        if not 0 < self.held_out_frac < 0.5:
            raise ValueError(f"data.held_out_frac must lie between 0 and 0.5, got {self.held_out_frac}")

    def lenient(self) -> Self:
        return replace(self, skip_bad_rows=True, max_bad_frac=0.999)

    def refuse(self, problems: Sequence[str]) -> None:
        """DataError with what is wrong with rows, unless they are to be left out."""
        if problems and not self.skip_bad_rows:
            raise DataError(f"{listed(problems)}\n{self.section}.skip_bad_rows=true leaves them out")

    @cached_property
    def reader(self) -> VideoReader:
        if not Path(self.root).is_dir():
            raise DataError(f"data.root={self.root}: there is no such folder of videos")
        return VideoReader(
            self.root,
            workers=self.workers,
            deadline_s=self.deadline_s,
            cache=self.cache,
            cache_gb=self.cache_gb,
        )


def without_rows(why: str, task: str, split: str, held_out_frac: float, fills: Callable[[float], bool]) -> NoRows:
    """The error of a split that a part of the videos is set aside for, and that has none for a task.

    ``fills`` says whether all splits have rows with another data.held_out_frac: the first with which they do is named.
    """
    if (enough := next((frac for frac in _FRACS if frac > held_out_frac and fills(frac)), None)) is not None:
        return NoRows(f"{why}\nset more videos aside: data.held_out_frac={enough:g} gives every split rows of {task}")
    return NoRows(f"{why}\nthere are too few videos of {task} to set some aside for {split}: add videos")


def leave_out(task: str) -> str:
    """Return what to do about a task that there is no data for."""
    return f"leave {task} out: task=[..] names the tasks there is data for, task_mix=.. a mix of them"


def split_by_video(video: str | bytes, held_out_frac: float) -> str:
    """Return which split a video belongs to for good: by its name alone, so that no two splits share one."""
    part = zlib.crc32(video.encode() if isinstance(video, str) else video) / 2**32
    bounds = zip(("val", "test"), (held_out_frac, 2 * held_out_frac))
    return next((split for split, bound in bounds if part < bound), "train")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(f"there is no split '{split}'; there are {', '.join(SPLITS)}")
