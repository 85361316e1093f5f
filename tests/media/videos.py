"""Videos made for tests: each frame a grey level that says which one it is, and files that are broken in known ways."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Sequence

import av
import numpy as np

from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.types import Clip, Effect, Montage, Segment, VideoRef

FPS = 10
LEVELS = 5  # grey levels between two frames
AS_IT_IS = FrameBudget(fps=2.0, max_frames=64, min_pixels=1, max_pixels=1)


def shown(path: Path | str, budget: FrameBudget = AS_IT_IS, **part: float) -> Clip:
    return decode(VideoRef(path=str(path), **part), budget)


def in_turn(*parts: VideoRef, effects: Sequence[Effect] = ()) -> Montage:
    """Parts of files, in the times of these, one after another."""
    paths = list(dict.fromkeys(part.path for part in parts))
    return Montage(
        sources=tuple(VideoRef(path=path) for path in paths),
        segments=tuple(Segment(source=paths.index(p.path), start_s=p.start_s, end_s=p.end_s) for p in parts),
        effects=tuple(effects),
    )


def dark(start_s: float, end_s: float | None = None) -> Effect:
    return Effect(name="dark", start_s=start_s, end_s=end_s)


def assert_counts(clip: Clip, tolerance: float = 1.0) -> None:
    """Of a video that is ``counting``: every frame is the one on show at its time, within one frame."""
    numbers = clip.frames.mean(axis=(1, 2, 3)) / LEVELS
    assert np.abs(numbers - np.floor(clip.times_s * FPS + 1e-6)).max() <= tolerance, (numbers, clip.times_s)


def grey(level: float, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = pixels[height // 2 :, width // 2 :] = 255
    return pixels


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rgb: str = "rgb24",
    rotation: int = 0,
    gop: int = 12,
    container: dict[str, str] | None = None,
    audio_s: float = 0.0,
    **options: str,
) -> Path:
    """Frames at FPS, or at ``times_ms``; ``rgb`` is the layout of the given arrays."""
    rate = FPS if times_ms is None else 1000
    with av.open(str(path), "w", container_options=container or {}) as file:
        defaults = {"crf": "4", "preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
        stream: Any = file.add_stream(codec, rate=FPS, options={**defaults, "g": str(gop), **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = file.add_stream("aac", rate=8000, layout="mono") if audio_s else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format=rgb)
            frame.pts, frame.time_base = number if times_ms is None else times_ms[number], Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            _add_silence(file, sound, audio_s)
    return path


def counting(path: Path, num_frames: int = 40, **options: Any) -> Path:
    """Frame k is grey level LEVELS * k."""
    return write_video(path, [grey(LEVELS * k) for k in range(num_frames)], **options)


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        _add_silence(file, file.add_stream("aac", rate=8000, layout="mono"), 2.0)
    return path


def _add_silence(file: Any, sound: Any, seconds: float) -> None:
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        file.mux(sound.encode(frame))
    file.mux(sound.encode(None))


def patched(path: Path, where: float, length: int, seed: int = 0) -> Path:
    """``length`` random bytes written over a file, ``where`` is a part of it."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * where)
    content[start : start + length] = np.random.default_rng(seed).bytes(length)
    path.write_bytes(content)
    return path


def cut(path: Path, part: float) -> Path:
    """The file without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def without_duration(path: Path) -> Path:
    """An mp4 whose headers (movie, track, media) say that it lasts no time."""
    content = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        start = content.index(box) + offset
        content[start : start + 4] = bytes(4)
    path.write_bytes(content)
    return path
