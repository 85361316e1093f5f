"""Where videos and images come from: a folder that nothing leads out of, read here or elsewhere, cached or not."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.frame_cache import Decode, FrameCache
from vidbridge.media.pool import WorkerPool
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Clip, Montage, Visual


class VideoReader:
    """``reader(visual, frames)`` is ``decode`` for paths below ``root``, absolute or from there.

    With ``workers`` the files are decoded in that many other processes, each within ``deadline_s``.
    """

    def __init__(
        self,
        root: str,
        *,
        workers: int = 0,
        deadline_s: float = 60.0,
        cache: str | None = None,
        cache_gb: float = 0.0,
    ) -> None:
        self.root = root
        self.pool = WorkerPool(workers, deadline_s=deadline_s) if workers else None
        self._decode: Decode = self.pool.decode if self.pool else decode
        if cache is not None and cache_gb > 0:
            self._decode = FrameCache(self._decode, Path(cache), int(cache_gb * 1e9))

    def __call__(self, visual: Visual, frames: FrameBudget) -> Clip:
        return self._decode(self.confined(visual), frames)

    def duration_s(self, path: str) -> float:
        """Return the duration as the headers of the file say."""
        confined = self._inside(path)
        if self.pool:
            return float(self.pool.describe(confined)["duration_s"])
        with VideoFile(confined) as file:
            return file.duration_s

    @property
    def width(self) -> int:
        """Return how many videos are worth reading at once."""
        return self.pool.size if self.pool else 1

    def confined(self, visual: Visual) -> Visual:
        """Return the same with paths that have been followed; VideoError if one leads out of the folder."""
        if isinstance(visual, Montage):
            sources = tuple(replace(each, path=self._inside(each.path)) for each in visual.sources)
            return replace(visual, sources=sources)
        return replace(visual, path=self._inside(visual.path))

    @cached_property
    def _real_root(self) -> Path:
        return Path(self.root).resolve()

    def _inside(self, path: str) -> str:
        try:
            followed = (self._real_root / path).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a link to itself, a zero byte
            raise VideoError(path, "missing", f"cannot be followed ({error})") from error
        if not followed.is_relative_to(self._real_root):
            hint = ""
            if followed.parent.name == "blobs":
                hint = ": a Hugging Face hub snapshot is links to its cache; `hf download .. --local-dir` writes files"
            raise VideoError(path, "outside_root", f"leads out of {self.root}{hint}")
        return str(followed)
