"""Task files on disk: the released JSONL schema plus typed extras, one row a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Sequence

from vidbridge.errors import DataError
from vidbridge.tasks.rows import MULTIPLE_CHOICE, Row
from vidbridge.text.option_reader import about, question_and_options, written
from vidbridge.text.sanitize import check_text, check_unicode, without_placeholders

_TEXTS = ("problem", "solution", "problem_type")
_MAX_SHOWN = 20


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """One JSON object a line; paths below the file's folder are relative to it. Appears whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            line: dict[str, Any] = {name: getattr(row, name) for name in _TEXTS}
            if row.images:
                line["images"] = [image.removeprefix(f"{path.parent}/") for image in row.images]
            if row.video:
                line["video"] = row.video.removeprefix(f"{path.parent}/")
            line |= {"uid": row.uid, "options": written(row.options), "rationale": row.rationale, **row.meta}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)


def read_rows(path: Path, problem_type: str) -> list[Row]:
    """Return all rows of a task's file; DataError lists every bad line with its field and what is wrong."""
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
    """Problems of a file, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._numbers: dict[str, int] = {}  # uid -> the line that has it

    def row_of(
        self,
        line: bytes,
        number: int,
        problem_type: str | None = None,
        whole_path: Callable[[str], str] | None = None,
    ) -> Row | None:
        """The row of a line, or None and another problem."""
        try:
            row = parse_row(line, self.path, number, problem_type, whole_path)
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
    whole_path: Callable[[str], str] | None = None,
) -> Row:
    """One line of ``path``. ValueError names the field and what is wrong with it.

    ``problem_type``: no other is right here. Paths are relative to the file's folder unless ``whole_path`` says where.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1})") from error
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
        (check_text if name in ("problem", "solution") else check_unicode)(fields[name], name)
    solution = fields["solution"]
    if not (solution.startswith("<answer>") and solution.endswith("</answer>")):
        raise ValueError(f"field 'solution' must be <answer>..</answer>, found {solution!r}")
    if solution.count("answer>") != 2:
        raise ValueError(f"field 'solution' must hold one answer, found {solution!r}")
    if problem_type is not None and fields["problem_type"] != problem_type:
        raise ValueError(f"field 'problem_type' must be '{problem_type}' here, found {fields['problem_type']!r}")
    images, video = pop_paths(fields)
    question = without_placeholders(fields["problem"], "problem", num_images=len(images), num_videos=int(video != ""))
    found = fields.pop("options", None)
    options: tuple[str, ...] = ()
    if found or fields["problem_type"] == MULTIPLE_CHOICE:
        question, read = question_and_options(question, found or None, "problem", "options")
        if read is None:
            raise ValueError("field 'problem' names no options A., B., .. and there are none in a field 'options'")
        options = read.texts
        if answer := solution[len("<answer>") : -len("</answer>")].strip():
            with about("solution"):
                letter = read.letter_of(answer, "letter")
            fields["solution"] = f"<answer>{letter}</answer>"
    uid, rationale = fields.pop("uid", f"{path.stem}/{number}"), fields.pop("rationale", "")
    for name, value in (("uid", uid), ("rationale", rationale)):
        if not isinstance(value, str):
            raise ValueError(f"field '{name}' must be a text, found {value!r}")
    check_unicode(uid, "uid")
    for name, text in (("rationale", rationale), *(("options", option) for option in options)):
        check_text(text, name)
    fields["problem"] = question
    known = {name: fields.pop(name) for name in _TEXTS}
    whole = whole_path or (lambda name: str(path.parent / name))
    return Row(
        uid=uid,
        options=options,
        rationale=rationale,
        images=tuple(map(whole, images)),
        video=whole(video) if video else "",
        meta=fields,
        **known,
    )


def pop_paths(fields: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Take the paths of what a row shows out of it: "images" or one "image", and "video", empty where there is none.

    ValueError when there are none at all, or for what is no path.
    """
    names = [name for name in ("image", "images") if name in fields]
    if len(names) > 1:
        raise ValueError("fields 'image' and 'images' are the same: keep one")
    images: tuple[str, ...] = ()
    for name in names:
        images = image_paths(fields.pop(name), name)
    if images and fields.get("video") is None:
        fields.pop("video", None)
        return images, ""
    if "video" not in fields:
        raise ValueError("field 'video' is missing, and there is no field 'images'")
    video = fields.pop("video")
    check_path(video, "video")
    return images, video


def image_paths(found: Any, name: str) -> tuple[str, ...]:
    """The paths of field ``name``: one, a list of them, or null for none."""
    paths = [] if found is None else found if isinstance(found, list) else [found]
    for each in paths:
        check_path(each, name)
    return tuple(paths)


def check_path(found: Any, name: str) -> None:
    """ValueError for what is no path. It is taken as it stands, blanks and all."""
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"field '{name}' must be a text that is not empty, found {found!r}")
    check_unicode(found, name)
