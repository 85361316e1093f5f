"""metrics.jsonl: the truth about a run. One JSON object a line, each with its step."""

from __future__ import annotations

from typing import Any


def series(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged.

    >>> series([{"step": 1, "a": 0.5}, {"step": 2}, {"step": 3, "a": None}, {"step": 4, "a": 1.0}], "a")
    ([1, 4], [0.5, 1.0])
    """
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
