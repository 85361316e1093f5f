"""How many frames a video may cost, at which times they are taken, and how large they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_ASPECT_RATIO = 200  # the limit of the Hugging Face processors


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBudget:
    """One budget for training, rollout and evaluation: what the model sees never depends on the caller.

    ``FrameBudget(fps=None, max_frames=16, min_pixels=100352, max_pixels=153664)`` is the paper's:
    16 uniform frames of 128..196 patches of 28 x 28 pixels.
    """

    fps: float | None  # None: always max_frames, spread uniformly
    max_frames: int
    min_pixels: int  # of one frame, height * width
    max_pixels: int
    total_pixels: int | None = None  # of all frames together: many frames are smaller ones
    multiple: int | None = None  # of both sides: the model's patch and merge size; None: frames stay as they are

    def __post_init__(self) -> None:
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"frames.fps must be positive or null, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"frames.max_frames must be at least 1, got {self.max_frames}")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"frames needs 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}"
            )
        if self.total_pixels is not None and self.total_pixels < self.min_pixels:
            raise ValueError(
                f"frames.total_pixels must be at least min_pixels={self.min_pixels} or null, got {self.total_pixels}"
            )

    def times(self, duration_s: float) -> np.ndarray:
        """Times [T] in seconds at the middle of T equal slices of the video.

        >>> FrameBudget(fps=2.0, max_frames=16, min_pixels=1, max_pixels=1).times(2.0).tolist()
        [0.25, 0.75, 1.25, 1.75]
        """
        num_frames = self.max_frames
        if self.fps is not None:
            num_frames = min(max(round(duration_s * self.fps), 1), self.max_frames)
        return (np.arange(num_frames) + 0.5) * (duration_s / num_frames)

    def size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """The (height, width) that frames of a video of ``num_frames`` are brought to; as they are without a multiple.

        >>> budget = FrameBudget(fps=None, max_frames=16, min_pixels=100352, max_pixels=153664, multiple=28)
        >>> budget.size(1080, 1920, 16)
        (280, 504)
        """
        if self.multiple is None:
            return height, width
        max_pixels = self.max_pixels
        if self.total_pixels is not None:
            max_pixels = max(min(max_pixels, self.total_pixels // num_frames), self.min_pixels)
        return smart_size(height, width, factor=self.multiple, min_pixels=self.min_pixels, max_pixels=max_pixels)


def smart_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to resize to: multiples of ``factor``, area within the budget, aspect ratio nearly kept.

    >>> smart_size(360, 640, factor=28, min_pixels=128 * 28 * 28, max_pixels=196 * 28 * 28)
    (280, 504)
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"a frame of {width} x {height} pixels is too long and thin (limit {MAX_ASPECT_RATIO}:1)")
    tall = round(height / factor) * factor
    wide = round(width / factor) * factor
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        stretch = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * stretch / factor) * factor
        wide = math.ceil(width * stretch / factor) * factor
    return tall, wide
