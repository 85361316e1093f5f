"""Decoded frames on disk, of at most so many bytes; any number of processes may share a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable

import numpy as np

from vidbridge.media.effects import file_of
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.types import Clip, ImageRef, Montage, Visual

Decode = Callable[[Visual, FrameBudget], Clip]

VERSION = 3  # of what is decoded: another one makes old entries useless
_LOCK = "lock"


class FrameCache:
    """``decode`` as before, and what it gave kept in ``folder``.

    An entry belongs to the files as they are (name, size, time of change), those of effects from outside of the package
    too, the part or the montage asked for and the budget. What was
    used least recently goes first once there are more than ``max_bytes``.
    """

    def __init__(self, decode: Decode, folder: Path, max_bytes: int) -> None:
        self.decode, self.folder, self.max_bytes = decode, folder, max_bytes
        self._written = max_bytes  # since the folder was last looked through: at first nobody knows

    def __call__(self, visual: Visual, frames: FrameBudget) -> Clip:
        try:
            path = self.folder / entry_name(visual, frames)
        except OSError:  # there is no such file, and decode says so better
            return self.decode(visual, frames)
        clip = read_entry(path)
        if clip is None:
            clip = self.decode(visual, frames)
            self._put(path, clip)
        return replace(clip, is_image=isinstance(visual, ImageRef))

    def _put(self, path: Path, clip: Clip) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._written += write_entry(path, clip)
        except OSError:  # a full disk is no reason to stop: the frames are here
            return
        if self._written > self.max_bytes / 20:
            self._make_room()
            self._written = 0

    def _make_room(self) -> None:
        """Only one process at a time; another one that comes meanwhile leaves it to the first."""
        with (self.folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            entries = []
            for path in self.folder.glob("*/*"):
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                entries.append((found.st_mtime_ns, found.st_size, path))
            too_much = sum(size for _, size, _ in entries) - self.max_bytes * 19 // 20
            for _, size, path in sorted(entries):
                if too_much <= 0:
                    break
                path.unlink(missing_ok=True)
                too_much -= size


def entry_name(visual: Visual, frames: FrameBudget) -> str:
    """OSError where a file cannot be looked at."""
    paths = sorted({source.path for source in visual.sources})
    if isinstance(visual, Montage):
        paths += sorted({path for effect in visual.effects if (path := file_of(effect))})
    identities = [(os.path.abspath(path), (found := os.stat(path)).st_size, found.st_mtime_ns) for path in paths]
    key = json.dumps([VERSION, type(visual).__name__, asdict(visual), asdict(frames), identities])
    name = hashlib.sha256(key.encode()).hexdigest()
    return f"{name[:2]}/{name[2:40]}"


def write_entry(path: Path, clip: Clip) -> int:
    """A line of JSON, times and frames as they are in memory; whole or not there. Returns its bytes."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(json.dumps(clip.frames.shape).encode() + b"\n")
            file.write(np.ascontiguousarray(clip.times_s, np.float64).data)
            file.write(np.ascontiguousarray(clip.frames).data)
            file.flush()
            os.replace(file.name, path)
            return file.tell()
        except BaseException:
            os.unlink(file.name)
            raise


def read_entry(path: Path) -> Clip | None:
    """Return the clip; None if it is not there or not whole; what is read counts as used now."""
    try:
        with path.open("rb") as file:
            num_frames, height, width, channels = json.loads(file.readline())
            times_s = np.fromfile(file, np.float64, num_frames)
            frames = np.fromfile(file, np.uint8)
        os.utime(path)
        return Clip(frames=frames.reshape(num_frames, height, width, channels), times_s=times_s)
    except (OSError, ValueError, TypeError):
        return None
