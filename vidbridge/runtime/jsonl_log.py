"""JSONL files that grow while something works, so that whoever was killed leaves a record to its end, and can go on."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Iterable, Mapping


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Nothing stays in a buffer.

    A NaN is written as null, wherever it stands: JSON has no NaN, and a gap is what a curve should show.
    """
    # half a surrogate pair, as in the name of a file, is no UTF-8: a backslash escape of it is JSON as well
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(_finite(line), ensure_ascii=False) + "\n" for line in lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:  # splitlines() would end a line at U+2028 in a text too
        return [json.loads(line) for line in file]


def whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file whose writer may have been killed at the last one, and the bytes that they take.

    ValueError names a line that is none of ours.
    """
    if not path.exists():
        return [], 0
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number} is damaged ({error}): take the file away, or mend the line") from error
    return lines, len(whole)


def resumed_lines(path: Path) -> list[dict[str, Any]]:
    """The same, for who goes on writing: what was not written to its end is cut off."""
    lines, size = whole_lines(path)
    if path.exists():
        os.truncate(path, size)
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
