"""A rank dies or hangs, or the launcher dies: all ends within 60 s, nothing is left running, resume=auto goes on.

    python -m experiments.faults.rank_death [--json FILE] [--tries N] [--engine zero3 --nproc 2]

The run gone on with must end with the metrics and the weights of one that nothing happened to.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import (
    STEPS,
    Case,
    Options,
    main,
    overrides_of,
    ranks_of,
    resumed,
    session,
    sharded,
    start,
    steps_done,
    unbroken_run,
    wait_for,
    words,
)

LIMIT_S = 60.0
HANG_S = 15.0
FAULTY = ("rollout._target_=experiments.faults.faulty.FaultyConfig", "allowed_targets=[experiments.]")
BEFORE = 8  # calls of the rollout that the evaluation before training makes: 4 tasks, sampled and greedy


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for engine, nproc in options.settings:
        overrides = (*overrides_of(engine, nproc), *FAULTY)
        unbroken = folder / f"unbroken_{engine}"
        if problem := unbroken_run(unbroken, *overrides):
            yield "unbroken run", problem
            continue
        for name, run_dir, problem in faults(folder / engine, overrides, options.tries):
            yield f"{engine} x {nproc}: {name}", problem or resumed(run_dir, unbroken, *overrides)


def faults(folder: Path, overrides: tuple[str, ...], tries: int) -> Iterator[tuple[str, Path, str | None]]:
    """What was done to a run, its folder, and what was wrong with how it ended."""
    folder.mkdir()
    rng = random.Random(0)
    for call in (2, *rng.sample(range(BEFORE + 1, BEFORE + STEPS + 1), tries)):
        when = f"in step {call - BEFORE}" if call > BEFORE else "before training"
        run_dir, mark = folder / f"exit_{call}", folder / f"exited_{call}"
        process = start(run_dir, *overrides, VIDBRIDGE_FAULT=f"exit {call} {mark}")
        wait_for(mark.exists, process)
        yield f"os._exit on one rank {when}", run_dir, ending(process, run_dir, says="rank 1 ended with status 7")
    for victim in ("rank", "launcher"):
        run_dir = folder / f"kill_{victim}"
        process = start(run_dir, *overrides)
        wait_for(lambda: steps_done(run_dir) >= 3, process)
        os.kill(ranks_of(process)[-1] if victim == "rank" else process.pid, signal.SIGKILL)
        says = "error: rank 1" if victim == "rank" else ""
        yield f"kill -9 of the {victim}", run_dir, ending(process, run_dir, says=says)
    run_dir, mark = folder / "hang", folder / "hanging"
    process = start(run_dir, *overrides, f"hang_s={HANG_S}", VIDBRIDGE_FAULT=f"hang {BEFORE + 5} {mark}")
    wait_for(mark.exists, process)
    yield "one rank hangs", run_dir, ending(process, run_dir, says="in generate", limit_s=HANG_S + LIMIT_S)


def ending(process: subprocess.Popen[str], run_dir: Path, *, says: str, limit_s: float = LIMIT_S) -> str | None:
    """What is wrong with how a run ends that something was done to just now."""
    started = time.monotonic()
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"it still ran after {limit_s:.0f} s"
    while session(process):
        if time.monotonic() - started > limit_s:
            return f"left: {session(process)}"
        time.sleep(0.1)
    if status == 0:
        return "its exit status was 0"
    return None if says in words(run_dir) else f"it did not say '{says}': {words(run_dir)[-1200:]}"


if __name__ == "__main__":
    main("rank_death", cases, tries=5, settings=sharded() or (("local", 2),))
