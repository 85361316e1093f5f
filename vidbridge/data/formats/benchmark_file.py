"""Benchmarks as they are published: a file of questions or captions whose fields a yaml names (conf/benchmark/).

    {"videoID": "fFjv93ACGo8", "question": "..?", "options": ["A. ..", ..], "answer": "C", "duration": "short"}

JSON lines, a JSON list, or CSV. A file that holds other rows than the yaml says is refused with all lines at fault;
``skip_bad_rows`` leaves those out instead, and says so.
"""

from __future__ import annotations

import csv
import json
import string
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Iterator, Mapping, Sequence

from vidbridge.data.file_dataset import FileDataset
from vidbridge.data.rows import image_paths, listed
from vidbridge.errors import DataError, NoRows
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.tasks.base import Task
from vidbridge.tasks.rows import MULTIPLE_CHOICE, Row
from vidbridge.text.option_reader import Options, about, question_and_options
from vidbridge.text.options import LETTERS
from vidbridge.text.sanitize import check_text, without_placeholders
from vidbridge.types import VideoRef

ANSWERS = ("letter", "index", "number", "text")
MAX_CSV_FIELD = 2**20
FROM_PARQUET = "pandas.read_parquet(IN).to_json(OUT, orient='records', lines=True)"


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile(FileDataset):
    """Texts in braces are templates over the fields of a row.

    Beside them there are {file}, the name of its file, {folder}, and {row}, its number in the file from 1.
    """

    section: ClassVar[str] = "benchmark.data"

    file: str  # * stands for several files
    prompt: str  # "{question}"
    answer: str  # the field of the reference
    video: str | None  # path below root: "{videoID}.mp4"; null: images alone
    id: str  # unlike in any two rows
    options: Any = None  # a field in any form of text/option_reader.py, or the names of several; null: in the question
    answer_is: str = "letter"  # index: from 0; number: from 1; text: one of the options
    no_option: Sequence[str] = ("",)  # what stands where a question has fewer options than others
    images: str | None = None  # field of a path below root, or a list of them, shown before the video or in its place
    start_s: str | None = None  # fields of the part of the video that is meant
    end_s: str | None = None
    subtitle: str | None = None  # field of a text that is shown before the question; null: off
    categories: Sequence[str] = ()  # fields that results are told apart by; metadata.subject is one inside another
    only: Mapping[str, Any] = field(default_factory=dict)  # rows with these values
    video_prefix: str = ""  # what paths start with where ``root`` stands here
    video_names: str | None = None  # a JSON object: from what ``video`` gives to the path without its ending
    folders: Mapping[str, str] = field(default_factory=dict)  # {folder} by {file}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer_is not in ANSWERS:
            raise ValueError(f"benchmark.data.answer_is must be one of {', '.join(ANSWERS)}, got {self.answer_is!r}")
        if self.video is None and self.images is None:
            raise ValueError("benchmark.data.video or benchmark.data.images must say what is shown")

    def rows(self, task: Task, split: str, frames: FrameBudget | None = None) -> Sequence[Row]:
        if split != "test":
            raise NoRows(f"{self.file} has no {split} rows: a benchmark is all test (eval.split=test)")
        rows: list[Row] = []
        problems: list[str] = []
        seen: dict[str, str] = {}
        names = _read_names(self.video_names) if self.video_names else None
        for where, fields in self._lines():
            try:
                if all(lookup(fields, name) == value for name, value in self.only.items()):
                    row = self._row(fields, task.problem_type, names)
                    if row.images and not task.takes_images:
                        raise ValueError(f"field {self.images!r}: {task.name} is made of a video, not of images")
                    if (other := seen.setdefault(row.uid, where)) is not where:
                        raise ValueError(f"id {row.uid!r} is that of {other} already")
                    rows.append(row)
            except ValueError as error:  # a DataError of the row too
                problems.append(f"{where}: {error}")
        self.refuse(problems)
        if problems:
            print(f"left out, {len(problems)} rows:\n{listed(problems)}", file=sys.stderr)
        if not rows:
            raise NoRows(f"{self.file}: no row" + (f" has benchmark.data.only={dict(self.only)}" if self.only else ""))
        return rows

    def _lines(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Return each row with where it stands."""
        pattern = Path(self.file)
        paths = [pattern] if pattern.is_file() else sorted(pattern.parent.glob(pattern.name))
        if not paths:
            raise DataError(f"benchmark.data.file={self.file}: there is no such file")
        for path in paths:
            if self.folders and path.stem not in self.folders:
                continue
            of_file = {"file": path.stem, "folder": self.folders.get(path.stem, "")}
            for number, (where, fields) in enumerate(read_lines(path), start=1):
                yield where, {**fields, **of_file, "row": number, **fields}  # one's own field of such a name wins

    def _row(self, fields: Mapping[str, Any], problem_type: str, names: Mapping[str, str] | None) -> Row:
        images = image_paths(fields.get(self.images), self.images) if self.images else ()
        video = self._video(fields, names, bool(images))
        question, options = self._asked(fields, problem_type, num_images=len(images), num_videos=int(video != ""))
        if self.subtitle is not None and (told := str(lookup(fields, self.subtitle) or "").strip()):
            check_text(told, self.subtitle)
            question = f"Subtitles: {told}\n{question}"
        return Row(
            uid=filled(self.id, fields),
            problem=question,
            solution=f"<answer>{self._answer(fields, options)}</answer>",
            video=video,
            images=tuple(image.removeprefix(self.video_prefix) for image in images),
            problem_type=problem_type,
            options=() if options is None else options.texts,
            meta={
                "sources": [video or images[0]],
                "categories": {name: value for name in self.categories if (value := lookup(fields, name)) is not None},
            },
            shown=self._part(fields, video) if video else None,
        )

    def _video(self, fields: Mapping[str, Any], names: Mapping[str, str] | None, has_images: bool) -> str:
        """The path of the video; empty where a row with images has none."""
        if self.video is None:
            return ""
        try:
            video = filled(self.video, fields).removeprefix(self.video_prefix)
        except ValueError:
            if has_images:
                return ""
            raise
        if names is None:
            return video
        stem, dot, ending = video.rpartition(".") if "." in video else (video, "", "")
        if stem not in names:
            raise ValueError(f"{self.video_names} has no path for the video {stem!r}")
        return f"{names[stem]}{dot}{ending}"

    def _asked(
        self, fields: Mapping[str, Any], problem_type: str, **shown: int
    ) -> tuple[str, Options | None]:
        """The question, and its options where rows of this problem type have some."""
        names = [name for _, name, _, _ in string.Formatter().parse(self.prompt) if name] or ["prompt"]
        question = filled(self.prompt, fields)
        check_text(question, names[0])
        question = without_placeholders(question, names[0], **shown)
        if self.options is None and problem_type != MULTIPLE_CHOICE:
            return question, None
        offers = self.options if isinstance(self.options, str) else "options"
        question, options = question_and_options(question, self._offered(fields), names[0], offers)
        if options is None:
            raise ValueError(f"field '{names[0]}' names no options A., B., .. (in a field: benchmark.data.options)")
        for text in options.texts:
            check_text(text, offers)
        return question, options

    def _offered(self, fields: Mapping[str, Any]) -> Any:
        """Return what the row has for options, without what fills the places of those that it lacks."""
        if self.options is None:
            return None
        if isinstance(self.options, str):
            found = lookup(fields, self.options)
        else:
            found = [lookup(fields, name) for name in self.options]
        nothing = (None, "", *self.no_option)
        if isinstance(found, Mapping):
            return {key: text for key, text in found.items() if text not in nothing}
        if not isinstance(found, list):
            return found
        kept = [each.strip() if isinstance(each, str) else each for each in found]
        while kept and kept[-1] in nothing:
            kept.pop()
        if any(each in nothing for each in kept):  # without it the letters would be those of others
            raise ValueError(f"an option is empty before the last one, found {found!r}")
        return kept

    def _answer(self, fields: Mapping[str, Any], options: Options | None) -> str:
        """The letter of an option, or the text where there are none."""
        found = lookup(fields, self.answer)
        if options is None:
            if not isinstance(found, str):
                raise ValueError(f"field {self.answer!r} must be a text, found {found!r}")
            check_text(found, self.answer)
            return found.strip()
        answer = "" if found is None else str(found).strip()
        if self.answer_is in ("index", "number"):
            index, first = answer.removesuffix(".0"), int(self.answer_is == "number")  # .0: a table with gaps
            last = len(options.texts) - 1 + first
            if not index.isdecimal() or not first <= int(index) <= last:
                raise ValueError(f"field {self.answer!r} must be a number from {first} to {last}, found {found!r}")
            return LETTERS[int(index) - first]
        with about(self.answer):
            return options.letter_of(answer, "text" if self.answer_is == "text" else "letter")

    def _part(self, fields: Mapping[str, Any], video: str) -> VideoRef | None:
        """Return the part of the video that is asked about; None where no bounds are given."""
        start, end = [fields.get(name) if name else None for name in (self.start_s, self.end_s)]
        if start is None or end is None:
            return None
        try:
            return VideoRef(path=video, start_s=float(start), end_s=float(end))
        except (TypeError, ValueError) as error:
            raise ValueError(f"fields {self.start_s!r} and {self.end_s!r} must be seconds: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of a file with where it stands; DataError for a file that is none of JSON lines, JSON list and CSV."""
    if path.suffix == ".parquet":
        raise DataError(f"{path}: parquet is not read here; make JSON lines of it: {FROM_PARQUET}")
    try:
        if path.suffix == ".csv":
            yield from _read_csv(path)
            return
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            found = [(f"{path}: row {number}", each) for number, each in enumerate(json.loads(text), start=1)]
        else:
            lines = enumerate(text.split("\n"), start=1)
            found = [(f"{path}:{number}", json.loads(line)) for number, line in lines if line.strip()]
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{path}: neither JSON lines, nor a JSON list, nor CSV ({error})") from error
    for where, each in found:
        if not isinstance(each, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(each).__name__}")
        yield where, each


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(MAX_CSV_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        for line in lines:
            if line and len(line) != len(header):
                told = f"{len(line)} fields under a header of {len(header)}"
                raise ValueError(f"line {lines.line_num}: {told}: cut off, or a comma without quotes?")
            if line:
                yield f"{path}:{lines.line_num}", dict(zip(header, line))


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """
    >>> lookup({"metadata": {"subject": "Art"}}, "metadata.subject")
    'Art'
    """
    if name in fields:  # a table may have a column of that name
        return fields[name]
    found: Any = fields
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"field '{name}' is missing; there are {', '.join(fields)}")
        found = found[part]
    return found


def filled(template: str, fields: Mapping[str, Any]) -> str:
    """
    >>> filled("{videoID}.mp4", {"videoID": "fFjv93ACGo8"})
    'fFjv93ACGo8.mp4'
    """
    return _Template().vformat(template, (), fields)


class _Template(string.Formatter):
    """Names are fields, or fields inside of others; nothing else about them can be asked."""

    def get_field(self, name: str, args: Sequence[Any], fields: Mapping[str, Any]) -> tuple[Any, str]:
        found = lookup(fields, name)
        if found is None:
            raise ValueError(f"field '{name}' is null")
        return found, name


def _read_names(path: str) -> Mapping[str, str]:
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"benchmark.data.video_names={path} cannot be read: {error}") from error
    if not isinstance(names, dict):
        raise DataError(f"benchmark.data.video_names={path} must hold a JSON object")
    return names
