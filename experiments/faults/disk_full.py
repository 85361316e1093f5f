"""The disk fills up while a checkpoint is written: the message names it, and the checkpoint before still verifies.

    python -m experiments.faults.disk_full [--json FILE]

The disk is a small one of our own: a tmpfs in a user namespace, for which Linux asks no rights.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import OVERRIDES, REPOSITORY, main, run
from vidbridge.checkpoint import newest

# room for the record, and for this many checkpoints and a half
CHECKPOINTS = 2.5
_INSIDE = """
set -e
mount -t tmpfs -o size={size_kb}k none {disk}
"{python}" train.py {overrides} "hydra.run.dir='{disk}/run'" checkpoint.keep_last=9 \\
    > {folder}/log 2>&1 || echo $? > {folder}/status
cp -r {disk}/run/checkpoints {folder}/kept
"""


def cases(folder: Path) -> Iterator[tuple[str, str | None]]:
    whole = folder / "whole"
    if run(whole) != 0:
        yield "run with room", "it failed by itself"
        return
    size = sum(path.stat().st_size for path in (whole / "checkpoints" / "step_000002").rglob("*") if path.is_file())
    disk = folder / "disk"
    disk.mkdir()
    script = _INSIDE.format(
        size_kb=int(CHECKPOINTS * size / 1024),
        disk=disk,
        folder=folder,
        python=sys.executable,
        overrides=" ".join(f'"{override}"' for override in OVERRIDES),
    )
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        yield "a disk of its own", "this machine allows no user namespace: nothing could be tried"
        return
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, check=True)
    log = (folder / "log").read_text(encoding="utf-8")
    status = int((folder / "status").read_text()) if (folder / "status").exists() else 0
    found, refused = newest(folder / "kept")
    problem = None
    if status != 1:
        problem = f"exit status {status}: {log[-300:]}"
    elif "No space left" not in log or str(disk) not in log or "Traceback" in log:
        problem = f"the message: {log[-300:]}"
    elif found is None or refused:
        problem = f"found {found}, refused {refused}"
    yield "a disk with room for two checkpoints and a half", problem


if __name__ == "__main__":
    main("disk_full", cases)
