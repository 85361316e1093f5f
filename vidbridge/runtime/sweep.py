"""The jobs of a sweep (``python train.py -m seed=0,1``): each a process of its own, and a table of their scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console
from rich.table import Table

from vidbridge.config.schema import WANDB_NAME
from vidbridge.runtime.signals import passed_on

# Of a sweep itself, not of its jobs.
SWEEP_KEYS = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra/sweeper", "hydra/launcher")


@dataclass(frozen=True)
class Job:
    """One job of a sweep that has ended."""

    overrides: list[str]
    run_dir: Path
    status: int


def run_job(door: str, settings: Any, wants_traceback: bool) -> Job:
    """One job of a sweep in its own process, so that it starts clean and may fail alone."""
    run_dir, overrides = Path(settings.runtime.output_dir), list(settings.overrides.task)
    folders = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
    # options first: argparse takes no further override after one that follows overrides
    command = [sys.executable, door, *(f"--config-dir={folder}" for folder in folders)]
    command += [f"--config-name={settings.job.config_name}", *overrides, f"hydra.run.dir={quoted(run_dir)}"]
    command += [text for text in settings.overrides.hydra if not text.lstrip("+~").startswith(SWEEP_KEYS)]
    if not any(override.lstrip("+").startswith("track.group=") for override in overrides):
        group = f"sweep {run_dir.parent.parent.name} {run_dir.parent.name}"
        command.append(f"track.group={quoted(group[:WANDB_NAME])}")
    environment = dict(os.environ)
    if not wants_traceback:
        del environment["HYDRA_FULL_ERROR"]
    print(f"job {settings.job.num}: {' '.join(overrides)}  ->  {run_dir}", flush=True)
    with subprocess.Popen(command, env=environment) as process, passed_on(process):
        status = process.wait()
    return Job(overrides, run_dir, status)


def quoted(value: object) -> str:
    """A text as the value of an override.

    >>> quoted("runs of today/lr=1,2")
    "'runs of today/lr=1,2'"
    """
    return QuotedString(str(value), Quote.single).with_quotes()


def print_jobs(jobs: list[Job]) -> None:
    """A table of the jobs of a sweep with their held-out scores."""
    table = Table(title="sweep: held-out scores, mean of mean / max")
    for column in ("job", "sampled", "greedy", "status", "folder"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        means = ["-", "-"]
        if job.status == 0 and (job.run_dir / "summary.json").exists():  # a plan leaves none
            summary = json.loads((job.run_dir / "summary.json").read_text())
            scores = summary["after"] if "after" in summary else summary["scores"]  # of train.py, of evaluate.py
            means = [f"{scores[kind]['mean']:.3f}" if kind in scores else "-" for kind in ("sampled", "greedy")]
        status = "ok" if job.status == 0 else f"failed ({job.status})"
        table.add_row(" ".join(job.overrides), *means, status, os.path.relpath(job.run_dir))
    Console().print(table)
