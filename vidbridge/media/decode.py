"""Read frames from a video file at given times."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vidbridge.media.frames import FrameBudget
from vidbridge.types import Clip, VideoRef


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""


def decode(ref: VideoRef, frames: FrameBudget) -> Clip:
    """Frames of ``ref`` at the budget's times; times_s counts from ``ref.start_s``.

    Decodes forward once and keeps, for each wanted time, the last frame shown at or before it:
    faster than exact seeks for a handful of frames, and right for variable frame rates.
    Raises VideoError when the file is missing, holds no video or ends before ``ref.start_s``.
    """
    if not Path(ref.path).is_file():
        raise VideoError(f"{ref.path}: no such video file")
    try:
        with av.open(ref.path) as container:
            if not container.streams.video:
                raise VideoError(f"{ref.path}: holds no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are short, and other decodes run beside this one
            duration_s = _duration_s(container, stream)
            end_s = duration_s if ref.end_s is None else min(ref.end_s, duration_s)
            if end_s <= ref.start_s:
                raise VideoError(f"{ref.path}: is {duration_s:.2f} s long, the clip starts at {ref.start_s:.2f} s")
            times_s = frames.times(end_s - ref.start_s)
            return Clip(frames=_frames_at(container, stream, ref.start_s + times_s, ref.path), times_s=times_s)
    except av.FFmpegError as error:
        raise VideoError(f"{ref.path}: cannot be decoded ({error})") from error


def _duration_s(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / av.time_base
    raise VideoError(f"{container.name}: does not say how long it is")


def _frames_at(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, times_s: np.ndarray, path: str
) -> np.ndarray:
    """[T, H, W, 3] uint8: for each time the frame on show then (the first one for earlier times)."""
    to_rgb = VideoReformatter()  # one for all frames: setting up the conversion costs more than a small frame
    kept: list[np.ndarray] = []
    shown: av.VideoFrame | None = None
    first_s: float | None = None
    for frame in container.decode(stream):
        time_s = float(frame.time or 0.0)
        first_s = time_s if first_s is None else first_s
        # 1 ms of slack: container time bases round, and a frame due at 0.25 may say 0.250001
        while shown is not None and len(kept) < len(times_s) and times_s[len(kept)] < time_s - first_s - 1e-3:
            kept.append(to_rgb.reformat(shown, format="rgb24").to_ndarray())
        shown = frame
        if len(kept) == len(times_s):
            break
    if shown is None:
        raise VideoError(f"{path}: not one frame could be decoded")
    if missing := len(times_s) - len(kept):  # the last frame stays on show until the end
        kept += [to_rgb.reformat(shown, format="rgb24").to_ndarray()] * missing
    return np.stack(kept)
