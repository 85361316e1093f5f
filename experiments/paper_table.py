"""The table of the paper from evaluations that lie in one folder: a row a benchmark, a column a model.

    python -m experiments.paper_table outputs/vidbridge_7b [--kind sampled]

Reads ``<folder>/<model>-<benchmark>/summary.json``, as experiments/vidbridge_7b.sh leaves them, prints each number with
its 95 % interval beside what the paper reports, and writes ``table.csv``. What was not evaluated stays empty.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Sequence

from rich.console import Console
from rich.table import Table

Cell = tuple[str, str]  # name of a benchmark, title of one of its numbers
QA, F1 = "QA accuracy %", "caption F1 %"
ROWS: Sequence[Cell] = (
    *((name, QA) for name in ("video_mme", "longvideobench", "mvbench", "mmvu", "next_qa", "intent_qa")),
    ("held_out", "DarkEventInfer %"),
    ("held_out", "MixVidQA %"),
    ("dream_1k", F1),
)
# VidBridge-R1 (arXiv 2506.09079): trained on all four tasks, and the base (its Video-MME without reasoning). Its
# DarkEventInfer and MixVidQA are sums over test sets of its own, which cannot stand beside ours.
PAPER = {
    "paper, all four": {"video_mme": 64.3, "longvideobench": 59.3, "mvbench": 61.9, "mmvu": 54.7, "intent_qa": 97.1,
                        "dream_1k": 35.2},
    "paper, base": {"video_mme": 59.4, "dream_1k": 34.4},
}  # fmt: skip


def read(folder: Path, kind: str) -> dict[str, dict[Cell, str]]:
    """Return {model: {cell: "value [low, high]"}} of all evaluations in ``folder``, "greedy" or "sampled" numbers."""
    found: dict[str, dict[Cell, str]] = {}
    for path in sorted(folder.glob("*/summary.json")):
        told = json.loads(path.read_text(encoding="utf-8")).get("benchmark")
        if not told:  # a training run
            continue
        cells = found.setdefault(path.parent.name.removesuffix(f"-{told['name']}"), {})
        for numbers in told.get(kind, {}).values():
            for title, number in numbers.items():
                if (cell := (told["name"], title)) in ROWS:
                    cells[cell] = f"{number['value']:.1f} [{number['low']:.1f}, {number['high']:.1f}]"
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("greedy", "sampled"), default="greedy")
    args = parser.parse_args(words)
    found = read(args.folder, args.kind)
    if not found:
        parser.error(f"{args.folder} holds no evaluation: <model>-<benchmark>/summary.json")
    header = ["benchmark", "number", *found, *PAPER]
    lines = [
        [name, title]
        + [cells.get((name, title), "") for cells in found.values()]
        + [str(numbers.get(name, "")) for numbers in PAPER.values()]
        for name, title in ROWS
    ]
    table = Table(*header, title=f"{args.kind}, with 95 % intervals over source videos", title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    with (args.folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])


if __name__ == "__main__":
    main()
