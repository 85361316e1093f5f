"""Run what is missing of a study: each row with each seed is a process of its own, which may fail, or be killed, alone.

A run that was broken off goes on from its checkpoint; one that has a result, in this study or with the same settings in
another, is not run again. A run's folder is locked by the process that works in it, not by the one that started it:
whoever starts the study again, or a second time beside, waits for that process instead of running into it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.ablations import results
from experiments.ablations.manifest import Manifest
from experiments.ablations.results import Settings
from vidbridge.config.evaluate import is_of_training
from vidbridge.config.schema import WANDB_NAME
from vidbridge.errors import ConfigError
from vidbridge.record.console import Console
from vidbridge.record.files import SUMMARY
from vidbridge.runtime.cores import usable
from vidbridge.runtime.signals import handled
from vidbridge.runtime.sweep import quoted

REPOSITORY = Path(__file__).parents[2]
LOG, LOCK = "output.log", "lock"
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row with a seed: where it works, and where its result goes."""

    study: str
    row: str
    settings: Settings
    run_dir: Path
    result: Path

    def __str__(self) -> str:
        return f"{self.row} seed {self.settings.seed}"

    def command(self) -> list[str]:
        door = "train.py" if self.settings.trains else "evaluate.py"
        group = quoted(f"ablations {self.study}"[:WANDB_NAME])
        own = [f"seed={self.settings.seed}", f"track.group={group}", "resume=auto"]
        overrides = [text for text in self.settings.overrides if self.settings.trains or not is_of_training(text)]
        return [sys.executable, door, *overrides, *own, f"hydra.run.dir={quoted(self.run_dir)}"]


@dataclass(frozen=True, slots=True)
class Working:
    run: Run
    process: subprocess.Popen[bytes]
    started: float


def runs_of(study: str, manifest: Manifest, results_dir: Path, outputs: Path) -> list[Run]:
    """Seed by seed, so that a study broken off has few seeds of every row, not all seeds of a few.

    ConfigError where a result is of other settings than the manifest asks for.
    """
    runs = [
        Run(
            study=study,
            row=name,
            settings=Settings(overrides=tuple(manifest.overrides(name)), trains=row.trains, seed=seed),
            run_dir=outputs.absolute() / study / name / f"seed{seed}",
            result=results.result_path(results_dir, name, seed),
        )
        for seed in manifest.seeds
        for name, row in manifest.rows.items()
    ]
    for run in runs:
        if run.result.exists() and results.read_settings(run.result) != run.settings:
            raise ConfigError(f"{run.result} is of other settings than {run} has now: delete it, or rename the row")
    return runs


def run_missing(runs: list[Run], *, jobs: int, console: Console) -> list[Run]:
    """Run what has no result yet, ``jobs`` at a time; those that failed.

    SIGTERM and SIGINT are passed on to what is working, which writes its checkpoint; then KeyboardInterrupt.
    """
    waiting = deque(run for run in runs if not adopted(run, console))
    console.start_stage(f"{len(waiting)} of {len(runs)} runs to do", len(waiting))
    total, done, asked = len(waiting), 0, False
    working: list[Working] = []
    failed: list[Run] = []

    def stop(signum: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        for each in working:
            each.process.send_signal(signum)

    with handled(stop):
        while working or (waiting and not asked):
            for each in [each for each in working if each.process.poll() is not None]:
                working.remove(each)
                if asked and each.process.returncode:
                    continue  # it is to go on another time
                done += 1
                note = finished(each)
                failed += [each.run] if note else []
                console.step(done, note or f"{each.run}: {time.monotonic() - each.started:.0f} s")
            while waiting and len(working) < jobs and not asked and (begun := begin(waiting, jobs, console)):
                working.append(begun)
            time.sleep(_POLL_S)
    if asked:
        raise KeyboardInterrupt(f"stopped after {done} of {total} runs; the same command goes on")
    return failed


def adopted(run: Run, console: Console) -> bool:
    """Whether there is a result already, if need be the same settings' of another study."""
    if run.result.exists():
        return True
    same = results.find_same(run.result.parent, run.settings)
    if same is not None:
        run.result.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(same, run.result)
        console.say(f"{run}: the same as {same.parent.name}/{same.name}, copied")
    return same is not None


def begin(waiting: deque[Run], jobs: int, console: Console) -> Working | None:
    """Start the first run that no other process works on; None where there is none just now."""
    for _ in range(len(waiting)):
        run = waiting.popleft()
        lock = locked(run)
        if lock is None:
            waiting.append(run)  # in turn: it may be done, or given up, when we come back to it
            continue
        with lock:
            console.say(f"{run} ..  ({run.run_dir / LOG})")
            return Working(run, start(run, jobs, lock.fileno()), time.monotonic())
    return None


def locked(run: Run) -> Any:
    """The open lock of the run's folder; None while another process has it. The child inherits it."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    file = (run.run_dir / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def start(run: Run, jobs: int, lock: int) -> subprocess.Popen[bytes]:
    """The run in a process that outlives ours; one that has ended well before is not repeated."""
    if is_finished(run):
        command = [sys.executable, "-c", ""]
    else:
        command = run.command()
        if not run.settings.trains:  # no checkpoints to go on from
            for path in run.run_dir.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    environment = {"OMP_NUM_THREADS": str(max(1, usable() // jobs)), **os.environ}
    with (run.run_dir / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C at the terminal comes to it once, through us
        )


def is_finished(run: Run) -> bool:
    try:
        json.loads((run.run_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def finished(each: Working) -> str:
    """Keep what the run found; otherwise what went wrong."""
    run = each.run
    if each.process.returncode:
        return f"{run}: FAILED with status {each.process.returncode}: {last_words(run.run_dir / LOG)}"
    if not run.result.exists():  # a second process of the study may have been faster
        try:
            results.write(results.collect(run.run_dir, run.settings), run.result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{run}: FAILED: no result in {run.run_dir} ({type(error).__name__}: {error}); look, then delete it"
    shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
    return ""


def last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
