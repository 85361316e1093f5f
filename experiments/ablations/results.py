"""What is kept of a run: results/<study>/<row>-seed<n>.jsonl.gz, a few kB, enough for every figure of the report.

The first line is the run, each of the others an item: what it earned of its terms, gated, averaged over its samples.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.errors import ConfigError
from vidbridge.evaluation.items import earned, is_scored
from vidbridge.record.files import ITEMS, METRICS, SUMMARY
from vidbridge.record.metrics_file import series
from vidbridge.runtime.jsonl_log import read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a result depends on: the same settings need not run twice, in whichever study they stand."""

    overrides: tuple[str, ...]
    trains: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A held-out item in one kind of evaluation (sampled or greedy)."""

    kind: str
    task: str
    uid: str
    source: int  # number of the video it was made from: items of one video are alike
    earned: Mapping[str, float]  # "total", and each term times the gates


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. ``cost`` has what COSTS of report.py tells; ``maximum`` is the most an item of a task can earn."""

    settings: Settings
    cost: Mapping[str, float]
    maximum: Mapping[str, float]
    items: Sequence[Item]


def result_path(folder: Path, row: str, seed: int) -> Path:
    return folder / f"{row}-seed{seed}.jsonl.gz"


def collect(run_dir: Path, settings: Settings) -> Result:
    """The result of a finished run, from its record."""
    summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    final = "after" if settings.trains else "scores"
    lines = read_lines(run_dir / METRICS)
    cost = {
        "updates": float(summary["steps"] or 0),
        "train_s": summary.get("train_s", 0.0),
        "tokens": sum(series(lines, "rollout/tokens")[1]),
        "peak_mb": summary.get("peak_rss_mb", 0.0),
        "checkpoint_mb": _largest_checkpoint_mb(run_dir / "checkpoints"),
    }
    maximum = {task: score["max"] for task, score in summary[final]["greedy"]["tasks"].items()}
    sources: dict[str, int] = defaultdict(lambda: len(sources))
    last = "after" if settings.trains else "the model"
    items = [_item(line, sources) for line in read_lines(run_dir / ITEMS) if line["when"] == last and is_scored(line)]
    return Result(settings=settings, cost=cost, maximum=maximum, items=items)


def _largest_checkpoint_mb(folder: Path) -> float:
    """Return how large a checkpoint is, 0 where there is none."""
    sizes = [sum(file.stat().st_size for file in each.iterdir()) for each in folder.glob("*")]
    return round(max(sizes, default=0) / 1e6, 3)


def _item(line: Mapping[str, Any], sources: dict[str, int]) -> Item:
    means = {name: float(np.nanmean(values)) for name, values in earned(line).items()}
    return Item(
        kind=line["kind"],
        task=line["task"],
        uid=line["uid"],
        source=sources[line["source"]],
        earned={name: round(mean, 4) for name, mean in means.items()},
    )


def write(result: Result, path: Path) -> None:
    """Appears whole or not at all; the same result gives the same bytes."""
    head = {"settings": asdict(result.settings), "cost": result.cost, "maximum": result.maximum}
    lines = [json.dumps(each) + "\n" for each in (head, *map(asdict, result.items))]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    unfinished.rename(path)


def read(path: Path) -> Result:
    """ConfigError names the file when it is not one of ours."""
    with _named(path), gzip.open(path, "rt", encoding="utf-8") as file:
        head = json.loads(file.readline())
        items = [Item(**json.loads(line)) for line in file]
        return Result(settings=_settings(head), cost=head["cost"], maximum=head["maximum"], items=items)


def read_settings(path: Path) -> Settings:
    """Of the same, without the items."""
    with _named(path), gzip.open(path, "rt", encoding="utf-8") as file:
        return _settings(json.loads(file.readline()))


def _settings(head: Mapping[str, Any]) -> Settings:
    return Settings(**{**head["settings"], "overrides": tuple(head["settings"]["overrides"])})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a result ({error}): delete it, and run the study again") from error


def find_same(folder: Path, settings: Settings) -> Path | None:
    """A result of the same settings, of any study whose results lie beside ``folder``."""
    for path in sorted(folder.parent.glob(f"*/*-seed{settings.seed}.jsonl.gz")):
        if read_settings(path) == settings:
            return path
    return None
