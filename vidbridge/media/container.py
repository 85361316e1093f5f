"""A file before its frames: whether it may be one, and opened as the video that it must be."""

from __future__ import annotations

import os
import stat

import av

from vidbridge.errors import VideoError
from vidbridge.media.kinds import READ, kind_of

# Containers of videos. No playlists: they name other files and addresses, whatever the file is called.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"


def check_file(path: str, kind: str = "video") -> None:
    """VideoError for what is no file, or holds nothing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoError(path, "missing", f"no such {kind} file") from error
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(path, "not_a_file", "is a folder, a pipe or a device, not a file")
    if found.st_size == 0:
        raise VideoError(path, "empty", "is empty")


def open_container(path: str) -> av.container.InputContainer:
    """Open a file; VideoError for what is no video. Nothing else is opened for it, whatever it says."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace", container_options=options)
    except (av.FFmpegError, UnicodeError) as error:
        if kind := kind_of(path):
            raise VideoError(path, "not_a_video", f"is {kind}; read are {READ}") from error
        raise VideoError(path, "not_a_video", f"is no video that can be opened ({plain(error)})") from error


def plain(error: Exception) -> str:
    """Return what FFmpeg says of an error, or its kind."""
    return getattr(error, "strerror", None) or type(error).__name__
