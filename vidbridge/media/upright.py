"""From a decoded frame to pixels as a player shows them: RGB, upright, on white where it is transparent."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter


def _unnamed(kind: type[SideData], value: int) -> SideData:
    """A member for a type of side data that FFmpeg has and PyAV does not.

    Without it ``frame.side_data`` raises ValueError for a frame that carries one (EXIF, the views of spatial video).
    """
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value  # type: ignore[assignment]
    return member


setattr(SideData, "_missing_", classmethod(_unnamed))


def upright(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """[H, W, 3] uint8. ``reformatter`` may be used again: setting it up costs more than converting a small frame."""
    pixels: np.ndarray
    if any(component.is_alpha for component in frame.format.components):
        pixels = on_white(reformatter.reformat(frame, format="rgba", threads=1).to_ndarray())
    else:
        pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    side_data: Any = frame.side_data
    matrix = side_data.get(SideData.DISPLAYMATRIX)
    return pixels if matrix is None else turned(pixels, np.frombuffer(bytes(matrix), np.int32))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Return a picture [H, W, 4] uint8 as [H, W, 3], white where it is transparent."""
    levels = rgba.astype(np.uint16)
    opaque = levels[..., 3:]
    return ((levels[..., :3] * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``pixels`` [H, W, 3] as a player shows them: ``matrix`` [a b u c d v x y w] sends (x, y) to (ax + cy, bx + dy).

    Quarter turns and mirror images; whatever lies between is taken for the nearest of these.
    """
    a, b, _, c, d = matrix[:5].astype(int)
    if abs(a) >= abs(b):
        along_y, along_x = d, a
    else:
        pixels = pixels.transpose(1, 0, 2)
        along_y, along_x = b, c
    return np.ascontiguousarray(pixels[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1])
