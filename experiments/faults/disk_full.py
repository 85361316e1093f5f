"""The disk fills up while a checkpoint is written: the message names it, and the checkpoint before still verifies.

    python -m experiments.faults.disk_full [--json FILE] [--engine zero3 --nproc 2]

The disk is a small one of our own: a tmpfs in a user namespace, for which Linux asks no rights.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

from experiments.faults.harness import OVERRIDES, REPOSITORY, Case, Options, main, overrides_of, run, sharded
from vidbridge.runtime.checkpoint import newest

# room for the record, and for this many checkpoints and a half
CHECKPOINTS = 2.5
_INSIDE = """
set -e
mount -t tmpfs -o size={size_kb}k none {disk}
"{python}" train.py {overrides} "hydra.run.dir='{disk}/run'" checkpoint.keep_last=9 \\
    > {folder}/log 2>&1 || echo $? > {folder}/status
cp -r {disk}/run/checkpoints {folder}/kept
"""


def cases(folder: Path, options: Options) -> Iterator[Case]:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        yield "a disk of its own", "this machine allows no user namespace: nothing could be tried"
        return
    for engine, nproc in options.settings:
        yield f"{engine} x {nproc}: room for {CHECKPOINTS} checkpoints", problem_of(folder / engine, engine, nproc)


def problem_of(folder: Path, engine: str, nproc: int) -> str | None:
    whole, disk = folder / "whole", folder / "disk"
    disk.mkdir(parents=True)
    overrides = (*OVERRIDES, *overrides_of(engine, nproc))
    if status := run(whole, *overrides):
        return f"with room it failed by itself with status {status}"
    size = sum(path.stat().st_size for path in (whole / "checkpoints" / "step_000010").rglob("*") if path.is_file())
    script = _INSIDE.format(
        size_kb=int(CHECKPOINTS * size / 1024),
        disk=disk,
        folder=folder,
        python=sys.executable,
        overrides=" ".join(f'"{override}"' for override in overrides),
    )
    environment = {**os.environ, "VIDBRIDGE_CACHE": str(folder / "cache")}
    subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, env=environment, check=True)
    log = (folder / "log").read_text(encoding="utf-8")
    status = int((folder / "status").read_text()) if (folder / "status").exists() else 0
    found, refused = newest(folder / "kept")
    if status != 1:
        return f"exit status {status}: {log[-600:]}"
    if "No space left" not in log or str(disk) not in log or "Traceback" in log or log.count("\nerror:") != 1:
        return f"the message: {log[-1200:]}"
    if found is None or refused:
        return f"found {found}, refused {refused}"
    return None


if __name__ == "__main__":
    main("disk_full", cases, settings=(("local", 1), *sharded()))
