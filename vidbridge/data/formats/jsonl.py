"""A JSONL file of rows that is never held in memory: every line checked once, then read where it stands."""

from __future__ import annotations

import json
import re
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from vidbridge.data.rows import Problems, parse_row
from vidbridge.errors import DataError
from vidbridge.tasks.rows import MULTIPLE_CHOICE, Row
from vidbridge.text.options import LETTERS

_decode = json.JSONDecoder().raw_decode
_LIKE_A_MARK = re.compile(r"\W|_|\w[^\w ,'-]|\w +[-–—]|option|choice|answer|选项")


@dataclass(frozen=True, kw_only=True)
class JsonlIndex:
    """Where the good lines of a file are, of which problem type, what they show (by its checksum), and whether images.

    What goes together into a split is told by the video, or the first image where there is none.
    """

    path: Path
    offsets: np.ndarray  # [n] int64
    numbers: np.ndarray  # [n] int64, lines count from 1
    kinds: np.ndarray  # [n] int32, indices of ``problem_types``
    videos: np.ndarray  # [n] uint32, crc32
    has_images: np.ndarray  # [n] bool
    problem_types: tuple[str, ...]
    problems: tuple[str, ...]  # file:line: field .. of the lines that are not good

    @classmethod
    def of(cls, path: Path) -> JsonlIndex:
        """Reads the whole file, line by line. DataError when there is none."""
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        offsets, numbers, kinds, videos, has_images = array("q"), array("q"), array("i"), array("I"), array("b")
        problem_types: dict[str, int] = {}
        problems = Problems(path)
        end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                start, end = end, end + len(line)
                if (plain := _plain(line)) is None:
                    if not line.strip() or (row := problems.row_of(line, number, None, as_it_stands)) is None:
                        continue
                    plain = row.problem_type, row.video or row.images[0]
                    has_images.append(bool(row.images))
                else:
                    has_images.append(False)
                offsets.append(start)
                numbers.append(number)
                kinds.append(problem_types.setdefault(plain[0], len(problem_types)))
                videos.append(zlib.crc32(plain[1].encode()))
        return cls(
            path=path,
            offsets=np.array(offsets),
            numbers=np.array(numbers),
            kinds=np.array(kinds),
            videos=np.array(videos),
            has_images=np.array(has_images, bool),
            problem_types=tuple(problem_types),
            problems=tuple(problems.lines),
        )

    def rows(self, problem_type: str) -> np.ndarray:
        if problem_type not in self.problem_types:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.kinds == self.problem_types.index(problem_type))


def as_it_stands(path: str) -> str:
    return path


def _plain(line: bytes) -> tuple[str, str] | None:
    """Problem type and video of a line as most are; None for one that needs a closer look."""
    try:
        fields, end = _decode(text := line.decode("utf-8"))
        problem, solution = fields["problem"], fields["solution"]
        video, problem_type = fields["video"], fields["problem_type"]
        if len(fields) != 4 or end < len(text) - 1:
            return None
        if "<" in problem or "<|" in solution:  # a placeholder, or a control token
            return None
        # a text method of what is no text is an AttributeError
        if not (problem.strip() and video.strip() and problem_type.strip()):
            return None
        if not (solution.startswith("<answer>") and solution.endswith("</answer>") and solution[8:-9].strip()):
            return None
        if solution.count("answer>") != 2 or "\\ud" in text or "\\uD" in text:  # halves of characters
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if problem_type == MULTIPLE_CHOICE and not _is_plain_choice(problem, solution[8:-9]):
        return None
    return problem_type, video


def _is_plain_choice(problem: str, letter: str) -> bool:
    """Return whether options on lines of their own, as ``A. grows``, follow a question to its end; one is the answer.

    Where anything about it is unusual the answer is no, and the close look decides.
    """
    lines = problem.split("\n")
    marked = [line[0] for line in lines if line[1:3] == ". "]
    number = len(marked)
    question, options = " ".join(lines[:-number]).strip(), [line[3:].strip().lower() for line in lines[-number:]]
    return (
        2 <= number < len(LETTERS)
        and LETTERS.startswith("".join(marked))
        and all(line[1:3] == ". " for line in lines[-number:])
        and letter in marked
        and len({" ".join(option.split()) for option in options} - {""}) == number
        and not any(map(_LIKE_A_MARK.match, options))
        and f"{LETTERS[number]}." not in problem
        and question != ""
        and question[-1] not in ":：*_"  # "Options:"
    )


class JsonlRows(Sequence[Row]):
    """Some rows of an indexed file; ``whole_path`` says where the videos and images of a row are."""

    def __init__(
        self, file: JsonlIndex, rows: np.ndarray, problem_type: str, whole_path: Callable[[str], str]
    ) -> None:
        self.file, self.rows, self.problem_type, self.whole_path = file, rows, problem_type, whole_path

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        at = self.rows[index]
        number = int(self.file.numbers[at])
        with self.file.path.open("rb") as opened:
            opened.seek(int(self.file.offsets[at]))
            line = opened.readline()
        try:
            return parse_row(line, self.file.path, number, self.problem_type, self.whole_path)
        except ValueError as error:
            raise DataError(f"{self.file.path}:{number}: {error} (it has changed since it was opened)") from error
