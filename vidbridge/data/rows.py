"""Task files on disk: the released JSONL schema plus typed extras, one row a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Sequence

from vidbridge.tasks.base import MULTIPLE_CHOICE, DataError, Row, check_unicode
from vidbridge.text.released import letter_of, split_options

_TEXTS = ("problem", "solution", "video", "problem_type")
_MAX_SHOWN = 20


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """One JSON object a line; video paths below the file's folder are relative to it. Appears whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            line: dict[str, Any] = {name: getattr(row, name) for name in _TEXTS}
            line["video"] = row.video.removeprefix(f"{path.parent}/")
            line |= {"uid": row.uid, "options": list(row.options), "rationale": row.rationale, **row.meta}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)


def read_rows(path: Path, problem_type: str) -> list[Row]:
    """All rows of a task's file, or a DataError that lists every bad line with its field and what is wrong."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows: list[Row] = []
    problems = Problems(path)
    with path.open("rb") as file:  # decoded line by line, so that a fault has a line too
        for number, line in enumerate(file, start=1):
            if line.strip() and (row := problems.row_of(line, number, problem_type)) is not None:
                rows.append(row)
    problems.refuse()
    if not rows:
        raise DataError(f"{path}: holds no row")
    return rows


class Problems:
    """What is wrong with a file, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._numbers: dict[str, int] = {}  # uid -> the line that has it

    def row_of(
        self,
        line: bytes,
        number: int,
        problem_type: str | None = None,
        video_path: Callable[[str], str] | None = None,
    ) -> Row | None:
        """The row of a line, or None and another problem."""
        try:
            row = parse_row(line, self.path, number, problem_type, video_path)
            if self._numbers.setdefault(row.uid, number) != number:
                raise ValueError(f"uid {row.uid!r} is that of line {self._numbers[row.uid]} already")
            return row
        except ValueError as error:
            self.lines.append(f"{self.path}:{number}: {error}")
            return None

    def refuse(self) -> None:
        """DataError when there is a problem, with all of them, or the first and how many more."""
        if self.lines:
            raise DataError(listed(self.lines))


def listed(problems: Sequence[str]) -> str:
    more = [f"... and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
    return "\n".join([*problems[:_MAX_SHOWN], *more])


def parse_row(
    line: bytes,
    path: Path,
    number: int,
    problem_type: str | None = None,
    video_path: Callable[[str], str] | None = None,
) -> Row:
    """One line of ``path``. ValueError names the field and what is wrong with it.

    ``problem_type``: no other is right here. Videos are relative to the file's folder unless ``video_path`` says where.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{line[error.start]:02x} at place {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    for name in _TEXTS:
        if name not in fields:
            raise ValueError(f"field '{name}' is missing")
        if not isinstance(fields[name], str) or not fields[name].strip():
            raise ValueError(f"field '{name}' must be a text that is not empty, found {fields[name]!r}")
        check_unicode(fields[name], name)
    solution = fields["solution"]
    if not (solution.startswith("<answer>") and solution.endswith("</answer>")):
        raise ValueError(f"field 'solution' must be <answer>..</answer>, found {solution!r}")
    if solution.count("answer>") != 2:
        raise ValueError(f"field 'solution' must hold one answer, found {solution!r}")
    if problem_type is not None and fields["problem_type"] != problem_type:
        raise ValueError(f"field 'problem_type' must be '{problem_type}' here, found {fields['problem_type']!r}")
    options = fields.pop("options", None)
    if options is None and fields["problem_type"] == MULTIPLE_CHOICE:  # as released: all in one text
        fields["problem"], options = split_options(fields["problem"])
        fields["solution"] = f"<answer>{letter_of(solution[len('<answer>') : -len('</answer>')].strip())}</answer>"
        if not options:
            raise ValueError("field 'problem' names no options A., B., .. and there is no field 'options'")
    options = [] if options is None else list(options) if isinstance(options, tuple) else options
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"field 'options' must be a list of texts, found {options!r}")
    uid, rationale = fields.pop("uid", f"{path.stem}/{number}"), fields.pop("rationale", "")
    for name, value in (("uid", uid), ("rationale", rationale)):
        if not isinstance(value, str):
            raise ValueError(f"field '{name}' must be a text, found {value!r}")
    for name, value in (("uid", uid), ("rationale", rationale), ("options", " ".join(options))):
        check_unicode(value, name)
    known = {name: fields.pop(name) for name in _TEXTS}
    known["video"] = video_path(known["video"]) if video_path else str(path.parent / known["video"])
    return Row(uid=uid, options=tuple(options), rationale=rationale, meta=fields, **known)
