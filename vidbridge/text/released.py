"""Multiple choice as the released files write it: the options stand in the question, the answer may repeat its text."""

from __future__ import annotations

import re

from vidbridge.text.options import LETTERS

_MARK = r"\(?([A-Z])[.):]\s*"
_LINE = re.compile(rf"^[ \t]*{_MARK}(?=\S)(.*)$", re.MULTILINE)
_INLINE = re.compile(rf"(?<!\S){_MARK}(?=\S)")
_ANNOUNCED = re.compile(r"\s*\b(?:options|choices)\s*:\s*$", re.IGNORECASE)


def split_options(problem: str) -> tuple[str, tuple[str, ...]]:
    """Question and options; no options where there are not at least two, lettered from A in order.

    >>> split_options("What next?\\nA. grows\\nB. spins")
    ('What next?', ('grows', 'spins'))
    >>> split_options("What next? Options: (A) grows (B) spins.")
    ('What next?', ('grows', 'spins.'))
    """
    by_line = _in_order(list(_LINE.finditer(problem)))
    if len(by_line) >= 2:
        options = [match[2].strip() for match in by_line]
        after = problem[by_line[-1].end() :]
    else:
        marks = _in_order(list(_INLINE.finditer(problem)))
        if len(marks) < 2:
            return problem, ()
        by_line = marks
        ends = [match.start() for match in marks[1:]]
        last, newline, after = problem[marks[-1].end() :].partition("\n")
        options = [problem[match.end() : end].strip(" ,;\n") for match, end in zip(marks, ends)] + [last.strip()]
        after = newline + after
    before = _ANNOUNCED.sub("", problem[: by_line[0].start()].rstrip())
    return f"{before}{after.rstrip()}".strip(), tuple(options)


def _in_order(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """Those that go A, B, C .. from the last A on which something follows."""
    starts = [place for place, mark in enumerate(marks) if mark[1] == "A"]
    for start in reversed(starts):
        run = [mark for mark, letter in zip(marks[start:], LETTERS) if mark[1] == letter]
        run = run[: next((n for n, mark in enumerate(run) if mark[1] != LETTERS[n]), len(run))]
        if len(run) >= 2:
            return run
    return []


def letter_of(answer: str) -> str:
    """
    >>> letter_of("B. it spins"), letter_of("(C)"), letter_of("both")
    ('B', 'C', 'both')
    """
    match = re.match(r"\(?([A-Z])(?:[.):]|$)", answer)
    return match[1] if match else answer
