"""What the fault scripts share: real runs of train.py in processes of their own, and a comparison of what they left."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
STEPS = 10
# Seconds a run: the embedded model and data, but few rows; a checkpoint every second step.
OVERRIDES = (
    "track=none",
    f"steps={STEPS}",
    "prompts_per_step=2",
    "algo.group_size=4",
    "data.num_rows={train: 8, val: 2, test: 2}",
    "rollout.max_completion_tokens=64",  # with fewer no answer is complete, and nothing is learnt
    "eval.num_items=2",
    "eval.num_samples=1",
    "eval.every=0",
    "checkpoint.every=2",
)
Case = tuple[str, str | None]  # what was tried, and what went wrong, if anything


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line of a script says."""

    tries: int
    settings: tuple[tuple[str, int], ...]  # engine and number of ranks


def sharded() -> tuple[tuple[str, int], ...]:
    """The setting with two ranks, where there is an engine for it."""
    return (("zero3", 2),) if (REPOSITORY / "conf" / "engine" / "zero3.yaml").exists() else ()


def overrides_of(engine: str, nproc: int) -> tuple[str, ...]:
    return (f"engine={engine}", f"nproc={nproc}")


def start(run_dir: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """``python train.py`` on the way, in its own session, its words in ``run_dir``.log."""
    command = [sys.executable, "train.py", *OVERRIDES, f"hydra.run.dir='{run_dir}'", *overrides]
    environment = {**os.environ, "VIDBRIDGE_CACHE": str(run_dir.parent / "cache"), **environment}
    with (run_dir.parent / f"{run_dir.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )


def run(run_dir: Path, *overrides: str, timeout_s: float = 600) -> int:
    """The same to its end; its exit status."""
    return start(run_dir, *overrides).wait(timeout_s)


def unbroken_run(run_dir: Path, *overrides: str) -> str | None:
    """What went wrong with the run that the others are compared to: it must end, and have learnt something."""
    if status := run(run_dir, *overrides):
        return f"it failed by itself with status {status}: {words(run_dir)[-600:]}"
    norms = [line["policy/grad_norm"] for line in record(run_dir) if "policy/grad_norm" in line]
    return None if sum(norm > 0 for norm in norms) > STEPS / 2 else f"it learnt too little to compare: {norms}"


def resumed(run_dir: Path, unbroken: Path, *overrides: str) -> str | None:
    """Go on with what was broken off; what is then not as in ``unbroken``."""
    if status := run(run_dir, "resume=auto", *overrides):
        return f"resuming ended with status {status}: {words(run_dir)[-600:]}"
    return difference(run_dir, unbroken)


def words(run_dir: Path) -> str:
    """What the runs in ``run_dir`` have said so far."""
    return (run_dir.parent / f"{run_dir.name}.log").read_text(encoding="utf-8")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Return when ``condition`` holds or the process has ended; TimeoutError after ``timeout_s``."""
    ends_at = time.monotonic() + timeout_s
    while not condition() and process.poll() is None:
        if time.monotonic() > ends_at:
            raise TimeoutError(f"nothing after {timeout_s} s")
        time.sleep(0.005)


def session(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of all that ``process`` has started and that still live, in the order of their start."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session_id = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session_id) == process.pid and state != "Z":
            alive.append(int(path.parent.name))
    return sorted(set(alive) - {process.pid})


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, the first one's first."""
    return [pid for pid in session(process) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def steps_done(run_dir: Path) -> int:
    """By the last whole line of metrics.jsonl."""
    return max((line["step"] for line in record(run_dir)), default=0)


def record(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def difference(one: Path, other: Path) -> str | None:
    """What tells the records and final weights of two runs apart, wall-clock times aside; None: nothing."""
    records = [[_timeless(line) for line in record(run_dir)] for run_dir in (one, other)]
    if len(records[0]) != len(records[1]):
        return f"{len(records[0])} lines of metrics instead of {len(records[1])}"
    for line, (mine, yours) in enumerate(zip(*records), start=1):
        if mine != yours:
            keys = sorted(key for key in mine.keys() | yours.keys() if mine.get(key) != yours.get(key))
            return f"metrics.jsonl:{line}: {', '.join(keys)}"
    weights = [load_file(run_dir / "model" / "model.safetensors") for run_dir in (one, other)]
    changed = [name for name in weights[1] if not weights[0][name].equal(weights[1][name])]
    return f"weights: {changed[0]}" if changed else None


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    timed = ("time/", "rollout/tokens_per_s")
    return {key: value for key, value in line.items() if not key.startswith(timed)}


def main(
    name: str,
    cases: Callable[[Path, Options], Iterator[Case]],
    *,
    tries: int = 1,
    settings: Sequence[tuple[str, int]] = (("local", 1),),
) -> None:
    """Run ``cases`` and report. Exit status 0 only when all survived."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.faults.{name}")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--tries", type=int, default=tries, help=f"how many moments, where they are chosen ({tries})")
    parser.add_argument("--engine", default="local", help="with --nproc: one setting instead of the script's own")
    parser.add_argument("--nproc", type=int, help="ranks")
    arguments = parser.parse_args()
    chosen = tuple(settings) if arguments.nproc is None else ((arguments.engine, arguments.nproc),)
    tried, failed = 0, []
    with tempfile.TemporaryDirectory(prefix="vidbridge_faults_") as folder:
        for case, problem in cases(Path(folder), Options(tries=arguments.tries, settings=chosen)):
            tried += 1
            failed += [f"{case}: {problem}"] if problem else []
            print(f"{tried:3d}  {case}: {problem or 'survived'}", flush=True)
    counts = {"tried": tried, "survived": tried - len(failed), "failed": failed}
    print(f"{name}: {counts['survived']} of {tried} survived")
    if arguments.json:
        arguments.json.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if failed or not tried else 0)
