"""Checkpoints that are whole or not there: a folder a step, hashed file by file, put in place by one rename.

    checkpoints/step_000050/  engine.safetensors  state.json  manifest.json

The manifest is written last and holds the SHA-256 of every other file, so that a folder cut short by a dying machine,
and one that changed on the disk since, are both known and named. With many ranks each writes its own files into the one
folder, which therefore lies on a disk that all machines of a run share.

Own state is JSON (state.json, manifest.json) and safetensors (engine*.safetensors): reading it runs no code. What an
engine leaves to DeepSpeed is in DeepSpeed's format, which is pickle: a hash tells that a file is what the run wrote,
not that the run was yours, so go on only from folders that you trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from safetensors import SafetensorError

from vidbridge.config.renamed import ADDED, with_current_names
from vidbridge.errors import CheckpointError
from vidbridge.runtime import collectives

MANIFEST, STATE = "manifest.json", "state.json"
_PREFIX, _UNFINISHED = "step_", ".unfinished_"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One that has been verified."""

    path: Path
    step: int  # steps done
    state: Mapping[str, Any]


def write_checkpoint(root: Path, step: int, state: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make ``root``/step_<step> with what ``fill(folder)`` writes beside ``state``; all of it or nothing.

    Called by all ranks: ``fill`` writes the files of its own, ``state`` is the first one's. CheckpointError names the
    disk when it is full; what was there before stays as it was.
    """
    final, unfinished = root / f"{_PREFIX}{step:06d}", root / f"{_UNFINISHED}{step:06d}"
    try:
        with _together(root):
            if collectives.is_rank_0():
                shutil.rmtree(unfinished, ignore_errors=True)  # of a run that died here
                unfinished.mkdir(parents=True)
                (unfinished / STATE).write_text(json.dumps({"step": step, **state}) + "\n", encoding="utf-8")
        with _together(root):
            fill(unfinished)
        manifest = _hashed(root, unfinished)
        with _together(root):
            if collectives.is_rank_0():
                (unfinished / MANIFEST).write_text(_manifest_text(manifest), encoding="utf-8")
                for path in [unfinished / MANIFEST, *{(unfinished / name).parent for name in manifest}]:
                    _sync(path)
                shutil.rmtree(final, ignore_errors=True)  # refused at the start of this run, and made again
                unfinished.rename(final)
                _sync(root)
    except Exception:
        if collectives.is_rank_0():
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return final


def _hashed(root: Path, folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of ``folder``, which is on the disk then; the ranks share the work.

    A rank takes only files that it sees: on a network disk those of other machines may take a while to show.
    """
    seen = collectives.all_gather({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()})
    digests: dict[str, str] = {}
    with _together(root):
        for number, name in enumerate(sorted(set().union(*seen))):
            sees = [rank for rank, names in enumerate(seen) if name in names]
            if sees[number % len(sees)] == collectives.rank():
                _sync(folder / name)
                digests[name] = sha256(folder / name)
    shares = collectives.all_gather(digests)
    return {name: share[name] for share in shares for name in sorted(share)}


@contextmanager
def _together(root: Path) -> Iterator[None]:
    """All ranks succeed or all fail; an error of the disk says which one and how much room there is."""
    with collectives.fail_together():
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write a checkpoint into {root} ({_room(root)}): {error}") from error


def verify(path: Path) -> str | None:
    """Return what is wrong with the checkpoint at ``path``, naming the file; None if it is as it was written."""
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
    """Writes checkpoints and keeps the newest ``keep_last`` and the best one.

    A run of one rank trains on meanwhile. Many ranks wait: they agree while they write, and talking to the others from
    two threads at once mixes up the answers.
    """

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
        if collectives.world_size() > 1:
            self._write(step, state, fill)
            return
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
        if collectives.is_rank_0():
            self._forget(state.get("best_step"))

    def _forget(self, best: int | None) -> None:
        """Remove those that are neither new nor the best."""
        steps = sorted(int(path.name.removeprefix(_PREFIX)) for path in self.root.glob(f"{_PREFIX}*"))
        kept = set(steps[-self.keep_last :])
        if self.keep_best and best is not None:
            kept.add(best)
        for old in set(steps) - kept:
            shutil.rmtree(self.root / f"{_PREFIX}{old:06d}", ignore_errors=True)


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path, free: Sequence[str]) -> None:
    """CheckpointError naming every key in which two configurations differ, but for those that are ``free``."""
    now = decisive(new, free)
    before = {key: value for key, value in ADDED.items() if key in now} | decisive(old, free)
    differing = [
        f"  {key}: {before.get(key, 'not there')} -> {now.get(key, 'not there')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        listed = "\n".join(differing)
        raise CheckpointError(
            f"{path} is of another configuration:\n{listed}\nset these back, or choose another hydra.run.dir"
        )


def fingerprint(record: Mapping[str, Any], free: Sequence[str]) -> str:
    """A short name for all that decides the numbers of a run: the same for runs that may go on from one another."""
    return hashlib.sha256(json.dumps(decisive(record, free), sort_keys=True).encode()).hexdigest()[:12]


def decisive(record: Mapping[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """The keys of ``record``, flat, without those that are ``free``."""
    keys = flat(with_current_names(record)).items()
    return {key: value for key, value in keys if not any(key == name or key.startswith(name + ".") for name in free)}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flat({"seed": 0, "optim": {"lr": 0.1}})
    {'seed': 0, 'optim.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


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
