"""Write frames as an H.264 mp4, an image as a PNG."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from vidbridge.types import Clip


def write_mp4(clip: Clip, path: Path, *, fps: int | Fraction, crf: int = 16) -> None:
    """Write what ``encode_mp4`` gives; the file appears whole or not at all."""
    partial = path.with_suffix(".partial.mp4")
    partial.write_bytes(encode_mp4(clip, fps=fps, crf=crf))
    partial.replace(path)


def encode_png(clip: Clip) -> bytes:
    """Return an image as a PNG file."""
    (pixels,) = clip.frames
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encode_mp4(clip: Clip, *, fps: int | Fraction, crf: int = 16) -> bytes:
    """Return ``clip`` (frames at a constant ``fps``) as an mp4 file of yuv420p H.264.

    ``crf`` is x264's quality, 0 lossless to 51; 16 keeps flat colours within a few grey levels.
    Odd sizes are refused: yuv420p halves both sides.
    """
    num_frames, height, width, _ = clip.frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs even sides, got {width} x {height}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # one thread: thousands of small clips are written, several at once. Without the macroblock tree: its look ahead
        # runs in a thread of its own, and one file in a hundred came out different from the same frames
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
