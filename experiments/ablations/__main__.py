"""``python -m experiments.ablations run <study>`` and ``.. report <study>``: a table with error bars from one command.

A study is a yaml beside this file, or any by its path; its results lie in results/<study>/ beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.ablations import manifest
from experiments.ablations.report import write_report
from experiments.ablations.running import run_missing, runs_of
from vidbridge.errors import ConfigError
from vidbridge.record.console import Console


def main() -> int:
    """The exit status: 0 done, 1 a run failed, 2 the study is wrong, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ablations", description=__doc__)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("study", help="its name, or the path of its yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores (1)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/ablations"), help="folder of the runs")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    try:
        path = manifest.find(arguments.study)
        study, results_dir = manifest.read(path), path.parent / "results" / path.stem
        runs = runs_of(path.stem, study, results_dir, arguments.outputs)
        if arguments.action == "report":
            print(write_report(path.stem, study, results_dir), end="")
            return 0
        failed = run_missing(runs, jobs=arguments.jobs, console=Console())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(stopped, file=sys.stderr)
        return 130
    for run in failed:
        print(f"failed: {run}, see {run.run_dir}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
