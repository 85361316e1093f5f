"""metrics.jsonl: the truth about a run. One JSON object a line, each with its step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Mapping

METRICS = "metrics.jsonl"


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line and leave nothing in a buffer, so that a killed run has a record to its end.

    A NaN is written as null, wherever it stands: JSON has no NaN, and a gap is what a curve should show.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: _finite(value) for key, value in values.items()}, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:  # splitlines() would end a line at U+2028 in a completion too
        return [json.loads(line) for line in file]


def series(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged.

    >>> series([{"step": 1, "a": 0.5}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 1.0}], "a")
    ([1, 4], [0.5, 1.0])
    """
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file whose writer may have been killed at the last one, and the bytes that they take."""
    if not path.exists():
        return [], 0
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], len(whole)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
