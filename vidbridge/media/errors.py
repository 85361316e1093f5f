"""The error of a video that cannot be read."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be read: which file, why in a word, and in a sentence."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail} [{reason}]")
        self.path, self.reason, self.detail = path, reason, detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, str]]:
        return VideoError, (self.path, self.reason, self.detail)
