"""Doors as people start them, each in a process of its own, forked from one that has imported everything already.

To import what a door needs takes seconds, nearly all that such a test would take. Whoever is forked here has imported
and done nothing else, so that a door finds what it finds when it is started by hand.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Mapping

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
os.environ["MPLBACKEND"] = "agg"  # read when it is imported
FORKS.set_forkserver_preload(["train", "evaluate", "build_data", "tests.conftest"])


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a process leaves, as of subprocess.run."""

    returncode: int
    stdout: str
    stderr: str


class Door:
    """``python door arguments`` in ``cwd``, on its way."""

    def __init__(self, door: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> None:
        self._said = TemporaryDirectory(prefix="door_")
        kept = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        kept |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
        self.process: BaseProcess = FORKS.Process(target=_open, args=(door, arguments, cwd, kept, self._said.name))
        self.process.start()

    def done(self, timeout_s: float = 240) -> Done:
        """When it has ended."""
        self.process.join(timeout_s)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            raise TimeoutError(f"it has not ended: {self._words}")
        return Done(returncode=status, **self._words)

    @cached_property
    def _words(self) -> Mapping[str, str]:
        words = {name: (Path(self._said.name) / name).read_text() for name in ("stdout", "stderr")}
        self._said.cleanup()
        return words


def run(door: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> Done:
    return Door(door, *arguments, cwd=cwd, **environment).done()


def _open(door: Path, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], said: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT), number)
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = [str(door), *arguments]
    sys.path.insert(0, str(door.parent))
    runpy.run_path(str(door), run_name="__main__")
