"""10 steps == k steps, stopped, and 10 - k more: metrics and weights identical, at three cut points.

    python -m experiments.faults.resume [--json FILE] [--engine zero3 --nproc 2]
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import (
    Case,
    Options,
    main,
    overrides_of,
    resumed,
    sharded,
    start,
    steps_done,
    unbroken_run,
    wait_for,
    words,
)

CUTS = (2, 5, 8)


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for engine, nproc in options.settings:
        overrides = overrides_of(engine, nproc)
        unbroken = folder / f"unbroken_{engine}"
        if problem := unbroken_run(unbroken, *overrides):
            yield "unbroken run", problem
            continue
        for cut in CUTS:
            broken = folder / f"cut_{engine}_{cut}"
            process = start(broken, *overrides)
            wait_for(lambda: steps_done(broken) >= cut, process)
            os.kill(process.pid, signal.SIGTERM)
            case = f"{engine} x {nproc} cut after {cut} steps"
            if process.wait(60) != 143:
                yield case, f"stopping ended with status {process.returncode}, not 143: {words(broken)[-600:]}"
                continue
            yield f"{case} ({steps_done(broken)} were done)", resumed(broken, unbroken, *overrides)


if __name__ == "__main__":
    main("resume", cases, settings=(("local", 1), *sharded()))
