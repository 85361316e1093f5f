"""Where each frame of a clip is from: which source, and which second of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Mapping, Sequence

import numpy as np

from vidbridge.media.decode import montage_times
from vidbridge.types import Montage, Sample, VideoRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """``frames`` has, of each frame, the index of its source and the second in it, or None where the screen is black.

    ``sources`` are the names that the data have for the files, without the folders of an absolute path; "video 1",
    "video 2" in a file that was cut from several before.
    """

    sources: tuple[str, ...]
    frames: tuple[tuple[int, float] | None, ...]


def origins(sample: Sample, number: int, times_s: np.ndarray) -> Origins:
    """Origins of the frames at ``times_s`` of video ``number`` of ``sample``.

    A montage knows what it shows; of a file that was cut before, ``sample.meta`` tells ("pieces", "dark").
    """
    video = sample.videos[number]
    if isinstance(video, Montage):
        parts, dark_s = video.parts, video.dark_s
    else:
        meta: Mapping[str, Any] = sample.meta if len(sample.videos) == 1 else {}
        pieces = _numbers(meta.get("pieces"), 3)  # source from 0, start and end, one after another
        parts = tuple(VideoRef(path=f"video {nth + 1:g}", start_s=start, end_s=end) for nth, start, end in pieces)
        dark_s = next(((start, end) for start, end in _numbers([meta.get("dark")], 2)), None)
    if not parts:
        assert isinstance(video, VideoRef)
        plain = [(0, video.start_s + float(time_s)) for time_s in times_s]
        return Origins(sources=(_name(video.path),), frames=_darkened(plain, times_s, dark_s))
    paths = list(dict.fromkeys(part.path for part in parts))
    shown = [(paths.index(parts[at].path), time_s) for at, time_s in montage_times(Montage(parts=parts), times_s)]
    return Origins(sources=tuple(map(_name, paths)), frames=_darkened(shown, times_s, dark_s))


def _darkened(
    shown: Sequence[tuple[int, float]], times_s: np.ndarray, dark_s: tuple[float, float] | None
) -> tuple[tuple[int, float] | None, ...]:
    if dark_s is None:
        return tuple(shown)
    start_s, end_s = dark_s
    return tuple(None if start_s <= time_s < end_s else origin for time_s, origin in zip(times_s, shown))


def _numbers(rows: Any, length: int) -> list[list[float]]:
    """``rows`` of ``length`` numbers; empty where people's own data mean something else by that name."""
    try:
        table = np.array(rows, float)
    except (TypeError, ValueError):
        return []
    is_it = table.ndim == 2 and table.shape[1] == length and bool(np.isfinite(table).all() and (table >= 0).all())
    return table.tolist() if is_it else []


def _name(path: str) -> str:
    return PurePath(path).name if PurePath(path).is_absolute() else path
