"""Everything that has never met a GPU, in one command and under nine minutes: docs/gpu_day.md.

    bash experiments/gpu_day.sh [OUT_DIR] [--dry-run] [--only attention,bench] [--model qwen3_vl_8b] [--seconds 540]

Each part is a process of its own with a limit, and those after it run whatever becomes of it; time that one leaves
is for the next. OUT_DIR gets gpu_day.json (the device, every test by name, every row of the bench), gpu_day.md (it
as tables) and a log for each part. With --only, what the files know of other parts stays.

Exit status: 0 all passed, 1 a part failed or ran out of time, 2 wrong arguments or a missing package, 3 no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Mapping, Sequence

ROOT = Path(__file__).parents[1]
# by the name that is imported: what pip calls it
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "deepspeed": "deepspeed",
    "wandb": "wandb",
    "av": "av",
    "numpy": "numpy",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
REPORTS = "GPU_DAY_REPORTS"  # environment: the file that pytest_runtest_logreport adds to
DESCRIBE = """
import json, platform, torch, transformers
there = torch.cuda.is_available()
print(json.dumps({
    "name": torch.cuda.get_device_name() if there else None,
    "memory_gb": round(torch.cuda.mem_get_info()[1] / 1e9, 1) if there else None,
    "cuda": torch.version.cuda,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "python": platform.python_version(),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    what: str
    limit_s: float
    arguments: tuple[str, ...]  # of python
    bench: bool = False  # it takes --json, and no tests


def tests(name: str) -> tuple[str, ...]:
    options = ("-m", "gpu", "-rs", "-p", "experiments.gpu_day", "-p", "no:cacheprovider")
    return ("-m", "pytest", *options, f"tests/gpu/test_{name}.py")


PARTS = {
    "attention": Part(what="flex_attention against the dense mask", limit_s=110, arguments=tests("attention")),
    "decoding": Part(what="captured decoding against eager", limit_s=60, arguments=tests("decoding")),
    "bench": Part(
        what="MFU, bandwidth, compilations, a step",
        limit_s=150,
        arguments=("-m", "experiments.bench.gpu", "--repeats", "3"),
        bench=True,
    ),
    "learner": Part(what="gradients against the CPU's", limit_s=30, arguments=tests("learner")),
    "runs": Part(what="train.py with every engine, plan, a random 3B", limit_s=150, arguments=tests("runs")),
    "memory": Part(what="plan=true against the allocator", limit_s=40, arguments=tests("memory")),
}


def pytest_runtest_logreport(report: Any) -> None:
    """This module is a plugin of pytest too: each test leaves a line when it is done, so that a limit loses none."""
    if report.when == "call" or report.outcome != "passed":
        message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
        line = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "message": message[-2000:],
            "figures": dict(report.user_properties),
        }
        with open(os.environ[REPORTS], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def missing_packages() -> list[str]:
    return [pip_name for name, pip_name in PACKAGES.items() if find_spec(name) is None]


def describe() -> dict[str, Any]:
    """The device, ``name`` None where there is none, and the versions; asked in another process, which lets it go."""
    done = subprocess.run([sys.executable, "-c", DESCRIBE], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "driver": driver()}


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def run_part(name: str, part: Part, out: Path, limit_s: float, model: str) -> dict[str, Any]:
    """Its status (passed, failed, out of time), seconds, and what its tests or its bench left."""
    reports, figures = out / f"{name}.jsonl", out / f"{name}.json"
    for left in (reports, figures):
        left.unlink(missing_ok=True)
    command = [sys.executable, *part.arguments]
    if part.bench:
        # what is being measured when the last part may begin takes a while too
        command += ["--model", model, "--json", str(figures), "--seconds", str(round(0.7 * limit_s))]
    began = time.monotonic()
    with open(out / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, REPORTS: str(reports)},
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            status = "passed" if code == 0 else f"failed (exit status {code})"
        except subprocess.TimeoutExpired:
            status = f"out of time ({limit_s:.0f} s)"
        finally:
            end_group(process)
    found: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    if reports.exists():
        found["tests"] = [json.loads(line) for line in reports.read_text().splitlines()]
        reports.unlink()
    if figures.exists():
        found["bench"] = json.loads(figures.read_text())
        figures.unlink()
    return found


def end_group(process: subprocess.Popen[bytes]) -> None:
    """With what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def as_markdown(result: Mapping[str, Any]) -> str:
    """Tables to paste: parts, tests, rows of the bench."""
    device = result["device"]
    versions = ", ".join(f"{name} {device[name]}" for name in ("driver", "cuda", "torch", "transformers", "python"))
    lines = [f"{device['name']}, {device['memory_gb']} GB; {versions}; {result['date']}", ""]
    lines += ["| part | | status | s |", "|---|---|---|---|"]
    for name, part in result["parts"].items():
        lines.append(f"| {name} | {PARTS[name].what if name in PARTS else ''} | {part['status']} | {part['seconds']} |")
    lines += ["", "| test | outcome | s | figures |", "|---|---|---|---|"]
    for part in result["parts"].values():
        for test in part.get("tests", []):
            figures = "; ".join(f"{name}: {value}" for name, value in test["figures"].items())
            name = test["test"].removeprefix("tests/gpu/").replace("|", "\\|")
            lines.append(f"| {name} | {test['outcome']} | {test['seconds']} | {figures} |")
    lines += ["", "| bench | figure | value |", "|---|---|---|"]
    for part in result["parts"].values():
        for row in part.get("bench", {}).get("rows", []):
            for name, value in row.items():
                if name != "part" and not isinstance(value, (dict, list)):
                    said = f"{value:.4g}" if isinstance(value, float) else value
                    lines.append(f"| {row['part']} | {name} | {said} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the first day with a GPU: docs/gpu_day.md")
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu_day"), metavar="OUT_DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(PARTS), metavar="PART,PART")
    parser.add_argument("--model", default="qwen2_5_vl_3b", help="of the bench, one of conf/model")
    parser.add_argument("--seconds", type=float, default=540, help="for everything; the limits shrink with it")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if missing := missing_packages():
        print(f"not installed for {sys.executable}: {', '.join(missing)}; docs/gpu_day.md says how", file=sys.stderr)
        return 2
    device, parts = describe(), {name: PARTS[name] for name in PARTS if name in args.only}
    there = device["name"] is not None
    scale = min(1.0, args.seconds / sum(part.limit_s for part in parts.values()))
    if args.dry_run or not there:
        print(f"device: {device['name']}" if there else "there is no CUDA device here: every part would be skipped")
        for name, part in parts.items():
            verb, limit_s = "would run" if there else "skipped", scale * part.limit_s
            print(f"{verb}: {name}, {part.what}, at most {limit_s:.0f} s: python {' '.join(part.arguments)}")
        return 0 if there else 3
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_day.json"
    known = json.loads(path.read_text())["parts"] if path.exists() else {}
    result = {"device": device, "date": time.strftime("%Y-%m-%d"), "parts": known}
    due = time.monotonic()
    for name, part in parts.items():
        due += scale * part.limit_s
        print(f"{name}: {part.what} ..", flush=True)
        found = run_part(name, part, out, due - time.monotonic(), args.model)
        result["parts"][name] = found
        print(f"{name}: {found['status']} after {found['seconds']} s; {out / name}.log", flush=True)
        path.write_text(json.dumps(result, indent=2) + "\n")  # after each: who is cut off has the ones before
        (out / "gpu_day.md").write_text(as_markdown(result))
    print(f"{path} and gpu_day.md beside it", flush=True)
    return int(any(result["parts"][name]["status"] != "passed" for name in parts))


if __name__ == "__main__":
    raise SystemExit(main())
