"""How many frames a video may cost, and at which times they are taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    def __post_init__(self) -> None:
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"frames.fps must be positive or null, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"frames.max_frames must be at least 1, got {self.max_frames}")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"frames needs 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}"
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
