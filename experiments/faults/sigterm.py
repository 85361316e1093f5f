"""SIGTERM at 5 moments: a checkpoint at most one step old, exit status 143, within 30 seconds.

    python -m experiments.faults.sigterm [--json FILE]
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import main, start, steps_done, wait_for, words
from vidbridge.checkpoint import newest

LIMIT_S = 30.0


def cases(folder: Path) -> Iterator[tuple[str, str | None]]:
    rng = random.Random(0)
    for number, step in enumerate((1, 3, 4, 7, 9)):
        run_dir = folder / f"run_{number}"
        process = start(run_dir)
        wait_for(lambda: steps_done(run_dir) >= step, process)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGTERM)
        asked = time.monotonic()
        try:
            status = process.wait(2 * LIMIT_S)
        finally:
            process.kill()
        took_s = time.monotonic() - asked
        found, _ = newest(run_dir / "checkpoints")
        done = steps_done(run_dir)
        problem = None
        if status != 143:
            problem = f"exit status {status}: {words(run_dir)[-300:]}"
        elif took_s > LIMIT_S:
            problem = f"took {took_s:.0f} s"
        elif found is None or found.step < done - 1:
            problem = f"{done} steps were done, the checkpoint has {found.step if found else 'none'}"
        yield f"SIGTERM after step {step} ({took_s:.1f} s)", problem


if __name__ == "__main__":
    main("sigterm", cases)
