"""The marks that options begin with: "A.", "(b)", "**C.**", "1)", "Option D:", and what only looks like one."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Iterator, Sequence

from vidbridge.text.options import LETTERS

UPPER, LOWER, NUMBER = "upper", "lower", "number"  # in the order in which they are looked for in a question

# A mark: "A.", "(b)", "[C]:", "**D.**", "1)", "Option A:", "- A.", "A、", "Ａ．", "A - "; the bullet is part of it.
_BULLET = r"(?:(?:[-+*•·●▪◦‣–—]|\#{1,6})[ \t]+)?"
_DRESS = r"(?:[(\[{（【*_`]|(?:option|choice|answer)[ \t]+|选项[ \t]*){0,6}"
LABEL = r"(?-i:[A-Za-zＡ-Ｚａ-ｚ]|[0-9０-９]{1,2})"
_TAIL = r"(?:\\?[.):\]}、．：）】*_`]){1,6}|[ \t]+[-–—](?=[ \t])"
_MARK = rf"(?P<lead>{_DRESS})(?P<label>{LABEL})(?P<tail>{_TAIL})[ \t]*"
_AT_START = re.compile(rf"[ \t]*(?P<bullet>{_BULLET}){_MARK}", re.IGNORECASE)
LINE = re.compile(rf"^{_AT_START.pattern}", re.IGNORECASE | re.MULTILINE)
INLINE = re.compile(rf"(?<!\S)(?P<bullet>){_MARK}", re.IGNORECASE)
BARE = re.compile(rf"{_DRESS}(?P<label>{LABEL})(?:{_TAIL})?\s*", re.IGNORECASE)
_SEPARATORS = frozenset(".):]}、．：）】-–—")
_MIRRORED = str.maketrans("([{（【", ")]}）】")


@dataclass(frozen=True)
class Mark:
    """The mark that an option begins with, and where it stands."""

    kind: str
    index: int  # A, a and 1 are 0
    style: tuple[str, str]  # what stands before the label and after it
    start: int
    end: int

    @property
    def unclosed(self) -> str:
        """Return what must close at the end of the option: "**" of "**A. cup**"."""
        opened = [each for each in self.style[0] if each in "([{（【*_`"]
        closing = "".join(reversed(opened)).translate(_MIRRORED)
        return "" if all(each in self.style[1] for each in closing) else closing


def read_label(label: str) -> tuple[str, int]:
    """Return the kind and the index of a label, from 0; a number counts from 1."""
    label = unicodedata.normalize("NFKC", label)
    if label.isdecimal():
        return NUMBER, int(label) - 1
    return (UPPER if label.isupper() else LOWER), LETTERS.index(label.upper())


def mark_of(text: str) -> Mark | None:
    """Return the mark that a text begins with."""
    match = _AT_START.match(text)
    return None if match is None else _as_mark(match)


def marks_in(pattern: re.Pattern[str], text: str) -> Iterator[Mark]:
    return (mark for mark in map(_as_mark, pattern.finditer(text)) if mark is not None)


def _as_mark(match: re.Match[str]) -> Mark | None:
    """Return None for what only looks like one: "1.5 m", "12:30", "1 - 2", "A.D. 100", "A_b"."""
    lead, tail, after = match["bullet"] + match["lead"], match["tail"], match.string[match.end() : match.end() + 2]
    kind, index = read_label(match["label"])
    emphasised = tail in ("*", "**", "_", "__", "`") and match["lead"].endswith(tail)
    if not (_SEPARATORS & set(tail) or emphasised):
        return None
    if match[0][-1] not in " \t" and not after[:1].isspace():  # nothing between the mark and the text
        if emphasised or (kind == NUMBER and after[:1].isdecimal()) or re.fullmatch(r"\w\.", after):
            return None
    if kind == NUMBER and (tail.strip() in "-–—" or (":" in tail and after[:1].isdecimal())):  # "1 - 2", "1: 2"
        return None
    return Mark(kind, index, (folded(lead).lower(), tail.strip()), match.start(), match.end())


def stands_out(mark: Mark) -> bool:
    """Return whether it is a mark inside a line too, where a small letter or a number must be in brackets."""
    return mark.kind == UPPER or bool(mark.style[0] and mark.style[1][0] in ")]}）】")


def in_order(marks: Sequence[Mark]) -> bool:
    """Return whether the marks are alike, and A, B, C .. or 1, 2, 3 .."""
    alike = all((mark.kind, mark.style) == (marks[0].kind, marks[0].style) for mark in marks)
    return alike and [mark.index for mark in marks] == [*range(len(marks))]


def longest_way(marks: Sequence[Mark]) -> list[Mark]:
    """Return marks that are alike and in order, from the last first one on: letters before numbers."""
    for kind in (UPPER, LOWER, NUMBER):
        starts = [at for at, mark in enumerate(marks) if mark.kind == kind and mark.index == 0]
        for at in reversed(starts):
            run = [marks[at]]
            for mark in marks[at + 1 :]:
                if (mark.kind, mark.style, mark.index) == (kind, run[0].style, len(run)):
                    run.append(mark)
            if len(run) >= 2:
                return run
    return []


def in_another_column(text: str, inline: Sequence[Mark], run: Sequence[Mark]) -> list[Mark]:
    """Return marks that go on after ``run`` behind its options: "A. cup    C. jug". One may be "vitamin C."."""
    following = {len(run), len(run) + 1}
    alike = [mark for mark in inline if (mark.kind, mark.style) == (run[0].kind, run[0].style)]
    found = [mark for mark in alike if mark.index in following]
    wide = any(mark.index == len(run) and text[: mark.start].endswith(("  ", "\t")) for mark in found)
    return found if wide or {mark.index for mark in found} == following else []


def without_mark(text: str, mark: Mark) -> str:
    """Return what follows a mark, without what closes it at the end."""
    text = text.strip()
    closing = mark.unclosed
    return text.removesuffix(closing).rstrip() if closing else text


def refuse_lettered(texts: Sequence[str], how: str) -> None:
    """ValueError where options begin with letters of options, and yet these are no marks of theirs.

    Two of them have the letter of their own index, or all together have A, B, C .. in another order, or B, C, D ..
    """
    marks = {at: mark for at, mark in enumerate(map(mark_of, texts)) if mark is not None and mark.kind != NUMBER}
    indices = [mark.index for mark in marks.values()]
    own = sum(at == mark.index for at, mark in marks.items())
    shuffled = {*indices} == {*range(len(texts))} and len(texts) > 1
    later = len(texts) > 2 and len(indices) == len(texts) and indices == [*range(indices[0], indices[0] + len(texts))]
    if own > 1 or shuffled or later:
        raise ValueError(f"the options carry letters, {how}: {[*texts]}")


def folded(text: str) -> str:
    """Return the text with single blanks for all white space, and none around."""
    return " ".join(text.split())
