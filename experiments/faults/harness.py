"""What the fault scripts share: real runs of train.py in processes of their own, and a comparison of what they left."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
STEPS = 10
# Seconds a run: the embedded model and data, but few rows; a checkpoint every second step.
OVERRIDES = (
    "track=none",
    f"steps={STEPS}",
    "prompts_per_step=2",
    "algo.group_size=2",
    "data.num_rows={train: 8, val: 2, test: 2}",
    "rollout.max_completion_tokens=16",
    "eval.num_items=2",
    "eval.num_samples=1",
    "eval.every=0",
    "checkpoint.every=2",
)


@contextmanager
def workshop() -> Iterator[Path]:
    """A folder for the runs of one script, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vidbridge_faults_") as folder:
        yield Path(folder)


def start(run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    """``python train.py`` on the way, in its own process group, its words in ``run_dir``.log."""
    command = [sys.executable, "train.py", *OVERRIDES, f"hydra.run.dir='{run_dir}'", *overrides]
    environment = {**os.environ, "VIDBRIDGE_CACHE": str(run_dir.parent / "cache")}
    with (run_dir.parent / f"{run_dir.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )


def run(run_dir: Path, *overrides: str, timeout_s: float = 600) -> int:
    """The same to its end; its exit status."""
    return start(run_dir, *overrides).wait(timeout_s)


def words(run_dir: Path) -> str:
    """What the runs in ``run_dir`` have said so far."""
    return (run_dir.parent / f"{run_dir.name}.log").read_text(encoding="utf-8")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Return when ``condition`` holds or the process has ended; TimeoutError after ``timeout_s``."""
    ends_at = time.monotonic() + timeout_s
    while not condition() and process.poll() is None:
        if time.monotonic() > ends_at:
            raise TimeoutError(f"nothing after {timeout_s} s")
        time.sleep(0.01)


def steps_done(run_dir: Path) -> int:
    """By the last whole line of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def difference(one: Path, other: Path) -> str | None:
    """What tells the records and final weights of two runs apart, wall-clock times aside; None: nothing."""
    records = [_timeless(run_dir) for run_dir in (one, other)]
    if len(records[0]) != len(records[1]):
        return f"{len(records[0])} lines of metrics instead of {len(records[1])}"
    for line, (mine, yours) in enumerate(zip(*records), start=1):
        if mine != yours:
            keys = sorted(key for key in mine.keys() | yours.keys() if mine.get(key) != yours.get(key))
            return f"metrics.jsonl:{line}: {', '.join(keys)}"
    weights = [load_file(run_dir / "model" / "model.safetensors") for run_dir in (one, other)]
    changed = [name for name in weights[1] if not weights[0][name].equal(weights[1][name])]
    return f"weights: {changed[0]}" if changed else None


def _timeless(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("time/", "rollout/tokens_per_s")
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(timed)} for line in lines]


def main(name: str, cases: Callable[[Path], Iterator[tuple[str, str | None]]]) -> None:
    """Run ``cases``, which yields (what was tried, what went wrong or None), and report.

    Exit status 0 only when all survived.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.faults.{name}")
    parser.add_argument("--json", type=Path, help="write the counts here")
    json_path = parser.parse_args().json
    tried, failed = 0, []
    with workshop() as folder:
        for case, problem in cases(folder):
            tried += 1
            failed += [f"{case}: {problem}"] if problem else []
            print(f"{tried:3d}  {case}: {problem or 'survived'}", flush=True)
    counts = {"tried": tried, "survived": tried - len(failed), "failed": failed}
    print(f"{name}: {counts['survived']} of {tried} survived")
    if json_path:
        json_path.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if failed or not tried else 0)
