"""Where each frame of a clip is from: which source, and which second of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from vidbridge.media.montage import in_files, planned
from vidbridge.types import Effect, ImageRef, Montage, Sample, Segment, VideoRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """``frames`` has, of each frame, the index of its source and the second in it, or None where the screen is black.

    An image is one frame, of second 0.

    ``sources`` are the names that the data have for the files, without the folders of an absolute path; "video 1",
    "video 2" in a file that was cut from several before.
    """

    sources: tuple[str, ...]
    frames: tuple[tuple[int, float] | None, ...]


def origins(sample: Sample, number: int, times_s: np.ndarray) -> Origins:
    """Return the origins of the frames at ``times_s`` of clip ``number`` of ``sample``.

    A montage knows what it shows; of a file that was cut before, ``sample.meta`` tells ("pieces", "dark").
    """
    visual = sample.shown[number]
    if isinstance(visual, ImageRef):
        return Origins(sources=(_name(visual.path),), frames=((0, 0.0),))
    return origins_of(visual if isinstance(visual, Montage) else _recorded(sample) or visual, times_s)


def origins_of(video: VideoRef | Montage, times_s: np.ndarray) -> Origins:
    """Return the origins of the frames of ``video`` that are played at ``times_s``."""
    montage = video if isinstance(video, Montage) else Montage(sources=(video,))
    segments = in_files(montage)
    paths = list(dict.fromkeys(montage.sources[segment.source].path for segment in segments))
    frames = [
        None if frame.hidden else (paths.index(montage.sources[frame.source].path), frame.time_s)
        for frame in planned(segments, montage.effects, times_s)
    ]
    return Origins(sources=tuple(map(_name, paths)), frames=tuple(frames))


def _recorded(sample: Sample) -> Montage | None:
    """Return what the row of a file that was cut before says of it: pieces of several videos, and the dark."""
    if len(sample.videos) > 1:
        return None
    pieces = _numbers(sample.meta.get("pieces"), 3)  # source from 0, start and end, one after another
    dark = _numbers([sample.meta.get("dark")], 2)
    if not pieces and not dark:
        return None
    numbers = list(dict.fromkeys(piece[0] for piece in pieces))
    try:
        return Montage(
            sources=tuple(VideoRef(path=f"video {number + 1:g}") for number in numbers) or sample.videos[0].sources,
            segments=tuple(Segment(source=numbers.index(n), start_s=start, end_s=end) for n, start, end in pieces),
            effects=tuple(Effect(name="dark", start_s=start, end_s=end) for start, end in dark),
        )
    except ValueError:  # pieces that end before they begin
        return None


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
