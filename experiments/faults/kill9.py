"""kill -9 at 20 random moments; resume=auto must end each run as if it had never been killed.

    python -m experiments.faults.kill9 [--json FILE]

Half of the moments are drawn over the whole run, half of them inside the writing of a checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import difference, main, run, start, wait_for

KILLS = 20


def cases(folder: Path) -> Iterator[tuple[str, str | None]]:
    unbroken = folder / "unbroken"
    started = time.monotonic()
    if run(unbroken) != 0:
        yield "unbroken run", "it failed by itself"
        return
    run_s = time.monotonic() - started
    rng = random.Random(0)
    for number in range(KILLS):
        killed = folder / f"killed_{number}"
        process = start(killed)
        if number % 2:
            step = rng.randrange(2, 11, 2)
            unfinished = killed / "checkpoints" / f".unfinished_{step:06d}"
            wait_for(unfinished.exists, process)
            time.sleep(rng.uniform(0, 0.02))
            when = f"while checkpoint {step} was written"
        else:
            after_s = rng.uniform(0.2, 0.95) * run_s
            wait_for(lambda begun=time.monotonic(), after_s=after_s: time.monotonic() - begun > after_s, process)
            when = f"after {after_s:.1f} s"
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if status := run(killed, "resume=auto"):
            yield f"killed {when}", f"resuming ended with status {status}"
            continue
        yield f"killed {when}", difference(killed, unbroken)


if __name__ == "__main__":
    main("kill9", cases)
