"""Multiple choice as files write it: a list, an object by letter, a text of lines, or options inside the question.

    ["A. cup", "B. bowl"]   {"A": "cup", "B": "bowl"}   "(a) cup\\n(b) bowl"   "What?\\n- **A.** cup\\n- **B.** bowl"

All are read here, whatever file they come from. An option comes out as one line without the mark that the file gave it,
since the prompt letters the options anew.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Literal, Mapping, Sequence

from vidbridge.text.option_marks import (
    BARE,
    INLINE,
    LABEL,
    LINE,
    NUMBER,
    folded,
    in_another_column,
    in_order,
    longest_way,
    mark_of,
    marks_in,
    read_label,
    refuse_lettered,
    stands_out,
    without_mark,
)
from vidbridge.text.options import LETTERS

_ANNOUNCED = re.compile(
    r"\s*[*_]*\b(?:(?:answer|the) )?(?:options|choices|candidates)(?: are)?\s*[*_]*[:：][*_]*\s*$|\s*选项\s*[:：]\s*$",
    re.IGNORECASE,
)
# A line after the last option that is about the answer, and no part of that option.
_INSTRUCTION = re.compile(
    r"\b(?:answers?|options?|choices?|choose|select|pick|letters?|reply|respond|please|think)\b|请|选择|回答",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """The texts of the options, in order, and whether the file numbers them (from 1, as in "2. bowl")."""

    texts: tuple[str, ...]
    numbered: bool = False

    def letter_of(self, answer: str, first: Literal["letter", "text", None] = None) -> str:
        """Return the letter of the option that ``answer`` states: by its letter or number, its text, or both.

        ``first`` decides where "B" is the letter of one option and the text of another, if the format says what its
        answers are. ValueError for an answer that states no option, or more than one.

        >>> Options(("cup", "bowl")).letter_of("(B)"), Options(("cup", "bowl")).letter_of("A. cup")
        ('B', 'A')
        """
        said = folded(answer)
        by_text = self._by_text(said)
        index, rest = self._by_mark(said)
        if index is not None and not rest and (first == "letter" or by_text in ([], [index])):
            return LETTERS[index]
        if len(by_text) > 1:
            raise ValueError(f"the answer {answer!r} is the text of {len(by_text)} options; give its letter")
        if by_text and (first == "text" or index is None or rest):
            return LETTERS[by_text[0]]
        if index is None:
            raise ValueError(f"the answer {answer!r} is neither an option nor its letter, found {[*self.texts]}")
        if by_text or (others := self._by_text(rest)) and index not in others:
            raise ValueError(f"the answer {answer!r} is the letter of one option and the text of another")
        return LETTERS[index]

    def _by_text(self, said: str) -> list[int]:
        exact = [index for index, text in enumerate(self.texts) if text == said]
        return exact or [index for index, text in enumerate(self.texts) if _plain(text) == _plain(said) != ""]

    def _by_mark(self, said: str) -> tuple[int | None, str]:
        """Return the index that a letter or a number stands for, and what follows it."""
        bare = BARE.fullmatch(said)
        mark = None if bare else mark_of(said)
        if bare:
            kind, index = read_label(bare["label"])
        elif mark:
            kind, index = mark.kind, mark.index
        else:
            return None, ""
        if index >= len(self.texts) or (kind == NUMBER and not (self.numbered and index >= 0)):
            return None, ""
        return index, said[mark.end :].strip() if mark else ""


def read_options(found: Any) -> Options:
    """Return the options of a field: a list of texts, an object of letters or numbers with texts, or lines of text.

    Marks are taken off where every option has its own, alike and in order. ValueError where they are only nearly so,
    for then nobody can tell whether they are marks.

    >>> read_options(["A. cup", "B. bowl"]).texts, read_options({"b": "bowl", "a": "cup"}).texts
    (('cup', 'bowl'), ('cup', 'bowl'))
    >>> read_options(["A. Lincoln", "Grant"]).texts
    ('A. Lincoln', 'Grant')
    """
    if isinstance(found, str):
        question, options = split_options(found)
        if options is not None and not question:
            return options
        lines = [line for line in found.split("\n") if line.strip()]
        if len(lines) < 2 or options is not None:
            raise ValueError(f"expected a list of texts, found {found!r}")
        found = lines
    numbered = False
    if isinstance(found, Mapping):
        numbered, found = _by_key(found)
    if not isinstance(found, (list, tuple)) or not all(_is_text(each) for each in found):
        raise ValueError(f"expected a list of texts, found {found!r}")
    texts = [str(each).strip() for each in found]
    marks = [mark for mark in map(mark_of, texts) if mark is not None]
    if len(marks) == len(texts) > 1 and in_order(marks):
        numbered = marks[0].kind == NUMBER
        texts = [without_mark(text[mark.end :], mark) for text, mark in zip(texts, marks)]
        twice = "twice"
    else:
        twice = "not all alike and in order"
    refuse_lettered(texts, twice)
    return Options(tuple(map(folded, texts)), numbered)


def split_options(question: str) -> tuple[str, Options | None]:
    """Return the question alone, and the options that it names, each with a mark; None where it names none.

    An option goes on to the next mark. ValueError where it cannot be told what belongs to which.

    >>> split_options("What next?\\nA. grows\\nand turns\\nB. spins")
    ('What next?', Options(texts=('grows and turns', 'spins'), numbered=False))
    >>> split_options("What next? Options: (A) grows (B) spins.")[1].texts
    ('grows', 'spins.')
    """
    lines, inline = list(marks_in(LINE, question)), list(marks_in(INLINE, question))
    if run := longest_way(lines):
        separators = ""
        others = [mark for mark in lines if mark.kind == run[0].kind] + in_another_column(question, inline, run)
    else:
        separators = ",;"
        run = longest_way([mark for mark in inline if stands_out(mark)])
        if not run or not _may_end(question[: run[0].start], question[run[0].start :]):
            return question, None
        others = [mark for mark in inline if mark.style == run[0].style]
    if any(mark.start > run[0].start and mark not in run for mark in others):
        raise ValueError("the marks of its options are mixed or not in order")
    ends = [mark.start for mark in run[1:]]
    last, after = _last_option(question[run[-1].end :])
    texts = [*(question[mark.end : end].rstrip().rstrip(separators) for mark, end in zip(run, ends)), last]
    before = _ANNOUNCED.sub("", question[: run[0].start].rstrip())
    options = tuple(folded(without_mark(text, mark)) for text, mark in zip(texts, run))
    refuse_lettered(options, "twice")
    return "\n".join(filter(None, (before.strip(), after))), Options(options, run[0].kind == NUMBER)


def question_and_options(question: str, found: Any, asks: str, offers: str) -> tuple[str, Options | None]:
    """Return the question without options, and these: ``found`` in a field of their own, or named in the question.

    Where the question repeats the options of the field, they are taken out of it. ``asks`` and ``offers`` are the names
    of the fields. ValueError, by field, for what cannot be told apart, and for options without a question.
    """
    with about(asks if found is None else offers):
        options = None if found is None else read_options(found)
        try:
            alone, named = split_options(question)
        except ValueError:
            if options is None:
                raise
            alone, named = question, None
    if named is not None and (options is None or named.texts == options.texts):
        question, options = alone, options or named
    if options is not None and not question.strip():
        raise ValueError(f"field '{asks}' holds options and no question")
    return question, options


def written(options: Sequence[str]) -> list[str]:
    """Return a list that is read back as ``options``: what looks like marks gets others before it.

    >>> written(["cup", "bowl"]), written(["1. FC", "2. BC"])
    (['cup', 'bowl'], ['A. 1. FC', 'B. 2. BC'])
    """
    try:
        same = read_options(list(options)).texts == tuple(options)
    except ValueError:
        same = False
    return list(options) if same else [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]


@contextmanager
def about(name: str) -> Iterator[None]:
    """While a field is read, a ValueError is about that field, and says so."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"field '{name}': {error}") from error


def _plain(text: str) -> str:
    return folded(text).strip(" .,;:!?").casefold()


def _is_text(each: Any) -> bool:
    return isinstance(each, (str, int, float)) and not isinstance(each, bool)


def _by_key(found: Mapping[Any, Any]) -> tuple[bool, list[Any]]:
    """Return whether the keys are 1, 2, .., and the texts in the order of the keys, which may be as "option_a", too."""
    labels = [re.fullmatch(rf"(?:option|choice)?[ _]?({LABEL})", str(key).strip(), re.IGNORECASE) for key in found]
    indices = [read_label(label[1]) for label in labels if label]
    first = min((index for _, index in indices), default=0)  # -1: the keys are 0, 1, ..
    ordered = sorted(indices) == [(kind, index) for index, (kind, _) in enumerate(indices, start=min(first, 0))]
    if len(indices) < len(labels) or not ordered:
        raise ValueError(f"expected the keys A, B, .., found {', '.join(map(str, found))}")
    texts = [text for _, text in sorted(zip(indices, found.values()), key=lambda each: each[0])]
    return first == 0 and indices[0][0] == NUMBER, texts


def _may_end(before: str, after: str) -> bool:
    """Return whether a question may end where options seem to begin in its line; "Did Dr. A. Smith .." goes on."""
    before = before.rstrip(" \t")
    told = before[-1:] in (".", "。") and len(before.split()) > 2 and not re.search("[?？]", after)
    return before == "" or before[-1] in "?!:？！：\n" or told


def _last_option(text: str) -> tuple[str, str]:
    """Return the last option and what follows it, which is part of the question."""
    lines = text.strip().split("\n")
    for number, line in enumerate(lines[1:], start=1):
        if not line.strip():
            continue
        goes_on, instructs = line.strip()[0].islower(), bool(_INSTRUCTION.search(line))
        if goes_on == instructs and (goes_on or lines[number - 1].strip()):
            raise ValueError(f"it cannot be told whether {line.strip()[:60]!r} belongs to the last option")
        if not goes_on:
            return "\n".join(lines[:number]), "\n".join(lines[number:]).strip()
    return "\n".join(lines), ""
