"""Pictures brought to another size."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return ``pixels`` [H, W, 3] uint8 brought to (height, width), bicubic and antialiased."""
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def letterboxed(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the picture as large as fits into (height, width), on black; one of nearly that shape fills it."""
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
