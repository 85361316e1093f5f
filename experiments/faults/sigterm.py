"""SIGTERM at 5 moments: a checkpoint at most one step old, exit status 143, within 30 seconds, no process left.

    python -m experiments.faults.sigterm [--json FILE] [--engine zero3 --nproc 2]

With many ranks every second signal goes to the last rank alone instead of the launcher.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import (
    Case,
    Options,
    main,
    overrides_of,
    ranks_of,
    session,
    sharded,
    start,
    steps_done,
    wait_for,
    words,
)
from vidbridge.runtime.checkpoint import newest

LIMIT_S = 30.0
MOMENTS = (1, 3, 4, 7, 8)


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for engine, nproc in options.settings:
        for number, step in enumerate(MOMENTS):
            run_dir = folder / f"run_{engine}_{number}"
            process = start(run_dir, *overrides_of(engine, nproc))
            wait_for(lambda: steps_done(run_dir) >= step, process)
            time.sleep(random.Random(number).uniform(0, 0.3))
            one_rank = nproc > 1 and number % 2
            os.kill(ranks_of(process)[-1] if one_rank else process.pid, signal.SIGTERM)
            asked = time.monotonic()
            try:
                status = process.wait(2 * LIMIT_S)
            finally:
                process.kill()
            took_s = time.monotonic() - asked
            to = "the last rank" if one_rank else "the run"
            case = f"{engine} x {nproc} SIGTERM to {to} after step {step} ({took_s:.1f} s)"
            yield case, problem_of(run_dir, status, took_s) or (f"left: {left}" if (left := session(process)) else None)


def problem_of(run_dir: Path, status: int, took_s: float) -> str | None:
    found, _ = newest(run_dir / "checkpoints")
    done = steps_done(run_dir)
    if status != 143:
        return f"exit status {status}: {words(run_dir)[-600:]}"
    if took_s > LIMIT_S:
        return "it took too long"
    if found is None or found.step < done - 1:
        return f"{done} steps were done, the checkpoint has {found.step if found else 'none'}"
    return None


if __name__ == "__main__":
    main("sigterm", cases, settings=(("local", 1), *sharded()))
