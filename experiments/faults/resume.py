"""10 steps == k steps, stopped, and 10 - k more: metrics and weights identical, at three cut points.

    python -m experiments.faults.resume [--json FILE]
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import difference, main, run, start, steps_done, wait_for

CUTS = (2, 5, 9)


def cases(folder: Path) -> Iterator[tuple[str, str | None]]:
    unbroken = folder / "unbroken"
    if run(unbroken) != 0:
        yield "unbroken run", "it failed by itself"
        return
    for cut in CUTS:
        broken = folder / f"cut_{cut}"
        process = start(broken)
        wait_for(lambda: steps_done(broken) >= cut, process)
        os.kill(process.pid, signal.SIGTERM)
        if process.wait(60) != 143:
            yield f"cut after {cut} steps", f"stopping ended with status {process.returncode}, not 143"
            continue
        stopped_at = steps_done(broken)
        if status := run(broken, "resume=auto"):
            yield f"cut after {stopped_at} steps", f"resuming ended with status {status}"
            continue
        yield f"cut after {stopped_at} steps", difference(broken, unbroken)


if __name__ == "__main__":
    main("resume", cases)
