"""Multiple choice as files write it: a list, an object by letter, a text of lines, or options inside the question.

    ["A. cup", "B. bowl"]   {"A": "cup", "B": "bowl"}   "(a) cup\\n(b) bowl"   "What?\\n- **A.** cup\\n- **B.** bowl"

All are read here, whatever file they come from. An option comes out as one line without the mark that the file gave it,
since the prompt letters the options anew.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Literal, Mapping, Sequence

from vidbridge.text.options import LETTERS

_UPPER, _LOWER, _NUMBER = "upper", "lower", "number"  # in the order in which they are looked for in a question

# A mark: "A.", "(b)", "[C]:", "**D.**", "1)", "Option A:", "- A.", "A、", "Ａ．", "A - "; the bullet is part of it.
_BULLET = r"(?:(?:[-+*•·●▪◦‣–—]|\#{1,6})[ \t]+)?"
_DRESS = r"(?:[(\[{（【*_`]|(?:option|choice|answer)[ \t]+|选项[ \t]*){0,6}"
_LABEL = r"(?-i:[A-Za-zＡ-Ｚａ-ｚ]|[0-9０-９]{1,2})"
_TAIL = r"(?:\\?[.):\]}、．：）】*_`]){1,6}|[ \t]+[-–—](?=[ \t])"
_MARK = rf"(?P<lead>{_DRESS})(?P<label>{_LABEL})(?P<tail>{_TAIL})[ \t]*"
_AT_START = re.compile(rf"[ \t]*(?P<bullet>{_BULLET}){_MARK}", re.IGNORECASE)
_LINE = re.compile(rf"^{_AT_START.pattern}", re.IGNORECASE | re.MULTILINE)
_INLINE = re.compile(rf"(?<!\S)(?P<bullet>){_MARK}", re.IGNORECASE)
_BARE = re.compile(rf"{_DRESS}(?P<label>{_LABEL})(?:{_TAIL})?\s*", re.IGNORECASE)
_SEPARATORS = frozenset(".):]}、．：）】-–—")
_MIRRORED = str.maketrans("([{（【", ")]}）】")

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
class Mark:
    """The mark that an option begins with, and where it stands."""

    kind: str
    place: int  # A, a and 1 are 0
    style: tuple[str, str]  # what stands before the label and after it
    start: int
    end: int

    @property
    def unclosed(self) -> str:
        """Return what must close at the end of the option: "**" of "**A. cup**"."""
        opened = [each for each in self.style[0] if each in "([{（【*_`"]
        closing = "".join(reversed(opened)).translate(_MIRRORED)
        return "" if all(each in self.style[1] for each in closing) else closing


@dataclass(frozen=True)
class Options:
    """The texts of the options, in order, and whether the file numbers them (from 1, as in "2. bowl")."""

    texts: tuple[str, ...]
    numbered: bool = False

    def letter_of(self, answer: str, first: Literal["letter", "text", None] = None) -> str:
        """The letter of the option that ``answer`` states: by letter or number in any dress, by its text, or by both.

        ``first`` decides where "B" is the letter of one option and the text of another, if the format says what its
        answers are. ValueError for an answer that states no option, or more than one.

        >>> Options(("cup", "bowl")).letter_of("(B)"), Options(("cup", "bowl")).letter_of("A. cup")
        ('B', 'A')
        """
        said = folded(answer)
        by_text = self._by_text(said)
        place, rest = self._by_mark(said)
        if place is not None and not rest and (first == "letter" or by_text in ([], [place])):
            return LETTERS[place]
        if len(by_text) > 1:
            raise ValueError(f"the answer {answer!r} is the text of {len(by_text)} options; give its letter")
        if by_text and (first == "text" or place is None or rest):
            return LETTERS[by_text[0]]
        if place is None:
            raise ValueError(f"the answer {answer!r} is neither an option nor its letter, found {[*self.texts]}")
        if by_text or (others := self._by_text(rest)) and place not in others:
            raise ValueError(f"the answer {answer!r} is the letter of one option and the text of another")
        return LETTERS[place]

    def _by_text(self, said: str) -> list[int]:
        exact = [place for place, text in enumerate(self.texts) if text == said]
        return exact or [place for place, text in enumerate(self.texts) if _plain(text) == _plain(said) != ""]

    def _by_mark(self, said: str) -> tuple[int | None, str]:
        """The place that a letter or a number stands for, and what follows it."""
        bare = _BARE.fullmatch(said)
        mark = None if bare else _mark_of(said)
        if bare:
            kind, place = _read_label(bare["label"])
        elif mark:
            kind, place = mark.kind, mark.place
        else:
            return None, ""
        if place >= len(self.texts) or (kind == _NUMBER and not (self.numbered and place >= 0)):
            return None, ""
        return place, said[mark.end :].strip() if mark else ""


def read_options(found: Any) -> Options:
    """Options of a field: a list of texts, an object of letters or numbers with texts, or one text with line breaks.

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
    marks = [mark for mark in map(_mark_of, texts) if mark is not None]
    if len(marks) == len(texts) > 1 and _in_order(marks):
        numbered = marks[0].kind == _NUMBER
        texts = [_option(text[mark.end :], mark) for text, mark in zip(texts, marks)]
        twice = "twice"
    else:
        twice = "not all alike and in order"
    _refuse_lettered(texts, twice)
    return Options(tuple(map(folded, texts)), numbered)


def split_options(question: str) -> tuple[str, Options | None]:
    """The question alone, and the options that it names, each with a mark; None where it names none.

    An option goes on to the next mark. ValueError where it cannot be told what belongs to which.

    >>> split_options("What next?\\nA. grows\\nand turns\\nB. spins")
    ('What next?', Options(texts=('grows and turns', 'spins'), numbered=False))
    >>> split_options("What next? Options: (A) grows (B) spins.")[1].texts
    ('grows', 'spins.')
    """
    lines, inline = list(_marks(_LINE, question)), list(_marks(_INLINE, question))
    if run := _longest_way(lines):
        separators = ""
        others = [mark for mark in lines if mark.kind == run[0].kind] + _in_another_column(question, inline, run)
    else:
        separators = ",;"
        run = _longest_way([mark for mark in inline if _stands_out(mark)])
        if not run or not _may_end(question[: run[0].start], question[run[0].start :]):
            return question, None
        others = [mark for mark in inline if mark.style == run[0].style]
    if any(mark.start > run[0].start and mark not in run for mark in others):
        raise ValueError("the marks of its options are mixed or not in order")
    ends = [mark.start for mark in run[1:]]
    last, after = _last_option(question[run[-1].end :])
    texts = [*(question[mark.end : end].rstrip().rstrip(separators) for mark, end in zip(run, ends)), last]
    before = _ANNOUNCED.sub("", question[: run[0].start].rstrip())
    options = tuple(folded(_option(text, mark)) for text, mark in zip(texts, run))
    _refuse_lettered(options, "twice")
    return "\n".join(filter(None, (before.strip(), after))), Options(options, run[0].kind == _NUMBER)


def question_and_options(question: str, found: Any, asks: str, offers: str) -> tuple[str, Options | None]:
    """The question without options, and the options: those ``found`` in a field of their own, or named in the question.

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
    """As a list that is read back as ``options``: what looks like marks gets others before it.

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


def folded(text: str) -> str:
    """Return the text with single blanks for all white space, and none around."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    return folded(text).strip(" .,;:!?").casefold()


def _is_text(each: Any) -> bool:
    return isinstance(each, (str, int, float)) and not isinstance(each, bool)


def _read_label(label: str) -> tuple[str, int]:
    """Its kind, and its place from 0; a number counts from 1."""
    label = unicodedata.normalize("NFKC", label)
    if label.isdecimal():
        return _NUMBER, int(label) - 1
    return (_UPPER if label.isupper() else _LOWER), LETTERS.index(label.upper())


def _by_key(found: Mapping[Any, Any]) -> tuple[bool, list[Any]]:
    """Whether the keys are 1, 2, .., and the texts in the order of the keys, which may be as "option_a", too."""
    labels = [re.fullmatch(rf"(?:option|choice)?[ _]?({_LABEL})", str(key).strip(), re.IGNORECASE) for key in found]
    places = [_read_label(label[1]) for label in labels if label]
    first = min((place for _, place in places), default=0)  # -1: the keys are 0, 1, ..
    in_order = sorted(places) == [(kind, place) for place, (kind, _) in enumerate(places, start=min(first, 0))]
    if len(places) < len(labels) or not in_order:
        raise ValueError(f"expected the keys A, B, .., found {', '.join(map(str, found))}")
    texts = [text for _, text in sorted(zip(places, found.values()), key=lambda each: each[0])]
    return first == 0 and places[0][0] == _NUMBER, texts


def _mark_of(text: str) -> Mark | None:
    match = _AT_START.match(text)
    return None if match is None else _as_mark(match)


def _marks(pattern: re.Pattern[str], text: str) -> Iterator[Mark]:
    return (mark for mark in map(_as_mark, pattern.finditer(text)) if mark is not None)


def _as_mark(match: re.Match[str]) -> Mark | None:
    """None for what only looks like one: "1.5 m", "12:30", "1 - 2", "A.D. 100", "A_b"."""
    lead, tail, after = match["bullet"] + match["lead"], match["tail"], match.string[match.end() : match.end() + 2]
    kind, place = _read_label(match["label"])
    emphasised = tail in ("*", "**", "_", "__", "`") and match["lead"].endswith(tail)
    if not (_SEPARATORS & set(tail) or emphasised):
        return None
    if match[0][-1] not in " \t" and not after[:1].isspace():  # nothing between the mark and the text
        if emphasised or (kind == _NUMBER and after[:1].isdecimal()) or re.fullmatch(r"\w\.", after):
            return None
    if kind == _NUMBER and (tail.strip() in "-–—" or (":" in tail and after[:1].isdecimal())):  # "1 - 2", "1: 2"
        return None
    return Mark(kind, place, (folded(lead).lower(), tail.strip()), match.start(), match.end())


def _stands_out(mark: Mark) -> bool:
    """Inside a line a small letter or a number must be in brackets."""
    return mark.kind == _UPPER or bool(mark.style[0] and mark.style[1][0] in ")]}）】")


def _in_order(marks: Sequence[Mark]) -> bool:
    """Alike, and A, B, C .. or 1, 2, 3 .."""
    alike = all((mark.kind, mark.style) == (marks[0].kind, marks[0].style) for mark in marks)
    return alike and [mark.place for mark in marks] == [*range(len(marks))]


def _longest_way(marks: Sequence[Mark]) -> list[Mark]:
    """Marks that are alike and in order, as many as there are, from the last first one on: letters before numbers."""
    for kind in (_UPPER, _LOWER, _NUMBER):
        starts = [at for at, mark in enumerate(marks) if mark.kind == kind and mark.place == 0]
        for at in reversed(starts):
            run = [marks[at]]
            for mark in marks[at + 1 :]:
                if (mark.kind, mark.style, mark.place) == (kind, run[0].style, len(run)):
                    run.append(mark)
            if len(run) >= 2:
                return run
    return []


def _in_another_column(text: str, inline: Sequence[Mark], run: Sequence[Mark]) -> list[Mark]:
    """Marks that follow on the last of ``run`` behind its options: "A. cup    C. jug". One may be "vitamin C."."""
    following = {len(run), len(run) + 1}
    alike = [mark for mark in inline if (mark.kind, mark.style) == (run[0].kind, run[0].style)]
    found = [mark for mark in alike if mark.place in following]
    wide = any(mark.place == len(run) and text[: mark.start].endswith(("  ", "\t")) for mark in found)
    return found if wide or {mark.place for mark in found} == following else []


def _may_end(before: str, after: str) -> bool:
    """Whether the question may end where in the same line options seem to begin; "Did Dr. A. Smith .." goes on."""
    before = before.rstrip(" \t")
    told = before[-1:] in (".", "。") and len(before.split()) > 2 and not re.search("[?？]", after)
    return before == "" or before[-1] in "?!:？！：\n" or told


def _last_option(text: str) -> tuple[str, str]:
    """The last option and what follows it, which is part of the question."""
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


def _option(text: str, mark: Mark) -> str:
    text = text.strip()
    closing = mark.unclosed
    return text.removesuffix(closing).rstrip() if closing else text


def _refuse_lettered(texts: Sequence[str], how: str) -> None:
    """ValueError where options begin with letters of options, and yet these are no marks of theirs.

    Two of them have the letter of their own place, or all together have A, B, C .. in another order, or B, C, D ..
    """
    marks = {at: mark for at, mark in enumerate(map(_mark_of, texts)) if mark is not None and mark.kind != _NUMBER}
    places = [mark.place for mark in marks.values()]
    own = sum(at == mark.place for at, mark in marks.items())
    shuffled = {*places} == {*range(len(texts))} and len(texts) > 1
    later = len(texts) > 2 and len(places) == len(texts) and places == [*range(places[0], places[0] + len(texts))]
    if own > 1 or shuffled or later:
        raise ValueError(f"the options carry letters, {how}: {[*texts]}")
