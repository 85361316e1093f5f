"""kill -9 at 20 random moments; resume=auto must end each run as if it had never been killed.

    python -m experiments.faults.kill9 [--json FILE] [--tries N] [--engine zero3 --nproc 2]

Half of the moments are drawn over the whole run, half of them inside the writing of a checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import STEPS, Case, Options, main, overrides_of, resumed, start, unbroken_run, wait_for


def cases(folder: Path, options: Options) -> Iterator[Case]:
    rng = random.Random(0)
    for engine, nproc in options.settings:
        overrides = overrides_of(engine, nproc)
        unbroken = folder / f"unbroken_{engine}"
        started = time.monotonic()
        if problem := unbroken_run(unbroken, *overrides):
            yield "unbroken run", problem
            continue
        run_s = time.monotonic() - started
        number = 0
        while number < options.tries:
            killed = folder / f"killed_{engine}_{number}_{rng.random()}"
            process = start(killed, *overrides)
            if number % 2:
                step = rng.randrange(2, STEPS + 1, 2)
                unfinished = killed / "checkpoints" / f".unfinished_{step:06d}"
                wait_for(unfinished.exists, process)
                time.sleep(rng.uniform(0, 0.02))
                when = f"while checkpoint {step} was written"
            else:
                after_s = rng.uniform(0.2, 0.95) * run_s
                wait_for(lambda at=time.monotonic() + after_s: time.monotonic() > at, process)
                when = f"after {after_s:.1f} of {run_s:.1f} s"
            if process.poll() is not None:  # it was faster this time: another moment
                continue
            number += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            left = "the checkpoint unfinished" if list(killed.glob("checkpoints/.unfinished_*")) else "none unfinished"
            yield f"{engine} x {nproc} killed {when}, {left}", resumed(killed, unbroken, *overrides)


if __name__ == "__main__":
    main("kill9", cases, tries=20)
