"""From a reference to a video, or to parts of several, to the frames that a budget asks for."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Mapping

import numpy as np
from PIL import Image

from vidbridge.errors import VideoError
from vidbridge.media.edit import blackout
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Clip, Montage, VideoRef


def decode(video: VideoRef | Montage, frames: FrameBudget) -> Clip:
    """Frames of ``video`` at the budget's times and of its size; times_s counts from the start of what is shown.

    A part that goes on after the end of its file ends there. Raises VideoError when a file cannot be read, or ends
    before a video begins.
    """
    try:
        return _decode_montage(video, frames) if isinstance(video, Montage) else _decode_part(video, frames)
    except VideoError:
        raise
    except ValueError as error:  # too long and thin, or nothing to hide
        raise VideoError(video.path, "unusable", str(error)) from error


def _decode_part(video: VideoRef, frames: FrameBudget) -> Clip:
    with VideoFile(video.path) as file:
        end_s = file.duration_s if video.end_s is None else min(video.end_s, file.duration_s)
        if end_s <= video.start_s:
            detail = f"is {file.duration_s:.2f} s long, the clip starts at {video.start_s:.2f} s"
            raise VideoError(video.path, "out_of_range", detail)
        times_s = frames.times(end_s - video.start_s)
        size = frames.size(file.height, file.width, len(times_s))
        pixels = [resized(each, size) for each in file.frames_at(video.start_s + times_s)]
        return Clip(frames=np.stack(pixels), times_s=times_s)


def _decode_montage(montage: Montage, frames: FrameBudget) -> Clip:
    with ExitStack() as stack:
        # each file is opened once
        files = {path: stack.enter_context(VideoFile(path)) for path in dict.fromkeys(p.path for p in montage.parts)}
        parts = [part for part in map(partial(_within, files), montage.parts) if length_s(part) > 0]
        for path, file in files.items():
            if path not in {part.path for part in parts}:
                raise VideoError(path, "out_of_range", f"is {file.duration_s:.2f} s long, it is shown from later on")
        times_s = frames.times(sum(map(length_s, parts)))
        wanted = montage_times(Montage(parts=tuple(parts)), times_s)
        first = files[parts[0].path]  # gives the canvas
        canvas = frames.size(first.height, first.width, len(times_s))
        pixels: list[np.ndarray] = [np.empty(0)] * len(times_s)
        for path, file in files.items():
            places = [place for place, (part, _) in enumerate(wanted) if parts[part].path == path]
            places.sort(key=lambda place: wanted[place][1])
            for place, each in zip(places, file.frames_at(wanted[place][1] for place in places)):
                pixels[place] = letterboxed(each, canvas)
    clip = Clip(frames=np.stack(pixels), times_s=times_s)
    return clip if montage.dark_s is None else blackout(clip, *montage.dark_s)


def _within(files: Mapping[str, VideoFile], part: VideoRef) -> VideoRef:
    """``part`` up to the end of its file: annotations are often a second longer."""
    assert part.end_s is not None, "the parts of a montage have an end"
    return replace(part, end_s=min(part.end_s, files[part.path].duration_s))


def montage_times(montage: Montage, times_s: np.ndarray) -> list[tuple[int, float]]:
    """For each time of the whole, which part is on show and the time in that part's file.

    >>> halves = (VideoRef(path="a", end_s=2.0), VideoRef(path="b", start_s=5.0, end_s=6.0))
    >>> montage_times(Montage(parts=halves), np.array([0.5, 2.5]))
    [(0, 0.5), (1, 5.5)]
    """
    lengths = [length_s(part) for part in montage.parts]
    starts = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    parts = np.searchsorted(starts, times_s, side="right") - 1
    return [
        (int(part), montage.parts[part].start_s + float(time_s - starts[part])) for part, time_s in zip(parts, times_s)
    ]


def length_s(part: VideoRef) -> float:
    assert part.end_s is not None, "the parts of a montage have an end"
    return part.end_s - part.start_s


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 brought to (height, width), bicubic and antialiased."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def letterboxed(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As large as fits into (height, width) with its shape kept, on black; a frame of nearly that shape fills it."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    # the canvas itself is rounded to multiples of the patch size: up to a tenth is filled rather than framed
    fills = [part * scale >= 0.9 * full for part, full in zip((height, width), size)]
    inner = (
        size[0] if fills[0] else max(round(height * scale), 1),
        size[1] if fills[1] else max(round(width * scale), 1),
    )
    if all(fills):
        return resized(pixels, size)
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = resized(pixels, inner)
    return canvas
