"""What the benchmarks share: time and memory of things measured side by side, the machine, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
import transformers
from rich.console import Console
from rich.table import Table

from vidbridge.backbones import FAMILIES
from vidbridge.check_model.peak import CPU, held_bytes, peak_extra_bytes, seconds_of

CONSOLE = Console(width=None if sys.stdout.isatty() else 120)  # a file has room for every column


def arguments(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """What every benchmark understands."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds that count, after one that does not")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    return parser


def add_backbone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=FAMILIES, default="qwen2_5_vl", help="the family of the random model")


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_name() -> str:
    """The model as Linux knows it, elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def medians(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function over ``repeats`` rounds a b c, a b c, .., after one round that does not count.

    In turns, so that whatever else the machine does meets all of them alike.
    """
    assert repeats >= 1, "a median of nothing"
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with announcing() as announce:
        for number in range(repeats + 1):
            for name, function in functions.items():
                announce(f"{f'round {number} of {repeats}' if number else 'warm-up'}: {name}")
                seconds[name].append(seconds_of(function))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_extra_mb(function: Callable[[], Any], device: torch.device = CPU) -> tuple[float | None, Any]:
    """``peak_extra_bytes`` in 10**6 bytes."""
    extra, result = peak_extra_bytes(function, device)
    return None if extra is None else extra / 1e6, result


def held_mb(device: torch.device = CPU) -> float:
    return held_bytes(device) / 1e6


@contextmanager
def announcing() -> Iterator[Callable[[str], Any]]:
    """Say what is being measured: on one line that is written over, or a line each where there is no terminal."""
    with CONSOLE.status("") as status:
        yield status.update if CONSOLE.is_terminal else CONSOLE.print


def finish(figures: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Name the machine, and write ``figures`` with it to the file that was asked for."""
    result = {"machine": machine(), "repeats": args.repeats, "quick": args.quick, **figures}
    CONSOLE.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()), style="dim")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> None:
    """A table; all columns but the first hold numbers."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(title, table, note, sep="\n")


def show_seconds(title: str, seconds: Mapping[str, float]) -> None:
    """A row for each side; the first is ours."""
    ours = next(iter(seconds.values()))
    rows = [(side, f"{value:.2f}", f"{value / ours:.1f}") for side, value in seconds.items()]
    show(title, ("side", "seconds", "times ours"), rows)


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
