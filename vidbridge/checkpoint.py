"""Checkpoints that are whole or not there: a folder a step, hashed file by file, put in place by one rename.

    checkpoints/step_000050/  engine/..  state.json  manifest.json

Own state is JSON and safetensors. The manifest is written last and holds the SHA-256 of every other file, so that a
folder cut short by a dying machine, and one that changed on the disk since, are both known and named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

MANIFEST, STATE = "manifest.json", "state.json"
_PREFIX, _UNFINISHED = "step_", ".unfinished_"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; the message says which, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that has been verified."""

    path: Path
    step: int  # steps done
    state: Mapping[str, Any]


def write_checkpoint(root: Path, step: int, state: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make ``root``/step_<step> with what ``fill(folder)`` writes beside ``state``; all of it or nothing.

    CheckpointError names the disk when it is full; what was there before stays as it was.
    """
    final, unfinished = root / f"{_PREFIX}{step:06d}", root / f"{_UNFINISHED}{step:06d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that died here
        unfinished.mkdir(parents=True)
        fill(unfinished)
        (unfinished / STATE).write_text(json.dumps({"step": step, **state}) + "\n", encoding="utf-8")
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(unfinished)): sha256(path) for path in files}
        (unfinished / MANIFEST).write_text(_manifest_text(manifest), encoding="utf-8")
        for path in [*files, unfinished / MANIFEST, *{path.parent for path in files}]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)  # refused at the start of this run, and made again
        unfinished.rename(final)
        _sync(root)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"cannot write a checkpoint into {root} ({_room(root)}): {error}") from error
    return final


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path``, naming the file; None if it is as it was written."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        # to the last character as it was written: a digest that changed accuses its file below
        if not isinstance(manifest, dict) or STATE not in manifest or text != _manifest_text(manifest):
            return f"{MANIFEST} is damaged"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError):
        return f"{MANIFEST} is damaged"
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    if missing := sorted(manifest.keys() - present):
        return f"{missing[0]} is missing"
    if foreign := sorted(present - manifest.keys()):
        return f"{foreign[0]} does not belong to it"
    changed = [name for name, digest in manifest.items() if sha256(path / name) != digest]
    return f"{changed[0]} is damaged (its SHA-256 is another)" if changed else None


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under ``root`` that verifies, and one line for each newer one that was refused."""
    refused = []
    for path in sorted(root.glob(f"{_PREFIX}*"), reverse=True):
        if problem := verify(path):
            refused.append(f"{path.name}: {problem}")
            continue
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path=path, step=state["step"], state=state), refused
    return None, refused


class Checkpointer:
    """Writes checkpoints beside the training, in a thread, and keeps the newest ``keep_last`` and the best one."""

    def __init__(self, root: Path, *, every: int, keep_last: int, keep_best: bool):
        self.root, self.every, self.keep_last, self.keep_best = root, every, keep_last, keep_best
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def save(self, step: int, state: Mapping[str, Any], fill: Callable[[Path], None], *, wait: bool = False) -> None:
        """Start writing what ``fill`` holds a copy of. An error of the one before is raised here.

        ``wait``: return when it is on the disk.
        """
        self.finish()
        self._pending = self._pool.submit(self._write, step, state, fill)
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written; CheckpointError if that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, state: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
        write_checkpoint(self.root, step, state, fill)
        steps = sorted(int(path.name.removeprefix(_PREFIX)) for path in self.root.glob(f"{_PREFIX}*"))
        kept = set(steps[-self.keep_last :])
        best = state.get("best_step")
        if self.keep_best and best is not None:
            kept.add(best)
        for old in set(steps) - kept:
            shutil.rmtree(self.root / f"{_PREFIX}{old:06d}", ignore_errors=True)


def _manifest_text(manifest: Mapping[str, str]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Do not return before ``path``, a file or a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _room(root: Path) -> str:
    existing = next(path for path in (root, *root.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 2**20:.0f} MB free on its disk"
