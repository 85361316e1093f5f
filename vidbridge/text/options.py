"""Which option an answer states: a letter in whatever dress, or the text of the option itself."""

from __future__ import annotations

import re
import unicodedata
from typing import Iterable, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Span = tuple[int, int]

_OPEN = r"[(\[{*\"'“‘`$]"
_CLOSE = r"[)\]}*\"'”’`$]"

# "A man walks" starts with an article, "I think" with a pronoun: before another word these two
# letters are options only when that word goes on about an option.
_ARTICLE_OR_PRONOUN = "AI"
_GOES_ON = (
    r"(?:is|was|are|were|and|or|nor|but|because|since|as|not|has|does|can|cannot|could|would|must|should|may|might"
    r"|\w+n['’]t|fits|matches|seems|looks|describes|says|states|then|instead|rather|over|better than|wrong|incorrect)\b"
)

# A small letter is an option only where its neighbours say so: something that announces an option
# before it ("choose b", "(b", or the start of a clause), and the end of a phrase after it.
_ANNOUNCES = re.compile(
    rf"(?:^|[.,;:!?=)/\n]|{_OPEN}|\b(?:answers?|options?|choices?|letters?|is|be|choose|chose|pick|select|say|with|not"
    r"|and|or|nor|neither|either|both|than|over|of|it['’]s))\s*$",
    re.IGNORECASE,
)
_ENDS = re.compile(rf"\s*(?:$|[.,;:!?/\n]|{_CLOSE}|{_GOES_ON})", re.IGNORECASE)

# Words that turn down what follows ("do not pick (A)", "rather than A") or what precedes ("A is wrong").
_NO = (
    r"\b(?:not|never|cannot|\w+n['’]t|neither|nor|rather than|instead of|except|unlike"
    r"|rul(?:e|es|ed|ing) out|eliminat(?:e[sd]?|ing|ion of)|exclud\w+)"
)
# The same for letters alone ("B over A", "B fits better than A"): an option text may well stand after "over".
_LESS = r"\b(?:over|(?:better|closer|stronger|\w{1,20}ier|more(?: \w{1,20})?) than)"
_AFTER_NO = (
    r"(?: (?:the|be|it|is|options?|answer|choice|letter|simply|just|likely|either|choose|pick|select)\b)*[ :]{0,2}"
)
_AUXILIARY = r"(?:(?:is|are|was|were|do|does|did|can|could|will|would|must|should|seems?|looks?|be|both) )"
_WRONG = r"(?:wrong|incorrect|false|ruled out|out|eliminated|excluded|impossible|unlikely)\b"

# Chinese, where words have no blanks between: what turns down and what lists, as the patterns here know it.
_CHINESE = {
    r"被排除|[可应]以?排除": " is ruled out ",
    r"排除": " ruling out ",
    r"都?(?:不正确|不对|错误|错的?|不可能|不是(?:正确)?答案)": " is wrong ",
    r"不是|并非|而非|不选|不能选|不会是": " not ",
    r"或者?|还是": " or ",
    r"[和与及]": " and ",
    r"、": " & ",
    r"。": ". ",
    r"选项": " option ",
    r"是": " is ",
}
_HAN = "\u4e00-\u9fff"

# What stands between options that are only listed ("A or B", "(A), (B)", "option A and option B").
_LISTED = re.compile(r"(?:[^\w?!]|_|\b(?:and|or|options?)\b)*", re.IGNORECASE)
# Words in parentheses; a letter dressed in them, as in "(B)" or "(option B)", is none.
_ASIDE = re.compile(r"\((?![^\w()]*(?:(?:option|answer|choice|letter)\W+)?\w\W*\))[^()]*\)", re.IGNORECASE)


def read_option(answer: str, options: Sequence[str]) -> str | None:
    """The last option letter that ``answer`` states without rejecting it; failing that, the last option text.

    ``options`` are texts without letters; one that is there twice is stated by its letter alone. Only whole words
    count, and an option text is not searched for letters ("vitamin B" is no B). A list ("A or B") states none of its
    options, and an aside in parentheses counts only where nothing else states one. None when no option is stated.

    >>> options = ("moves left", "grows", "spins", "hides")
    >>> read_option("Not A. The answer is (b)", options), read_option("It grows.", options), read_option("E", options)
    ('B', 'B', None)
    """
    assert len(options) <= len(LETTERS), f"{len(options)} options are more than there are letters"
    known = LETTERS[: len(options)]
    answer, *options = (_in_one_script(text) for text in (answer, *options))
    texts: dict[str, str | None] = {}
    for text, letter in zip(map(_plain, options), known):
        if not re.fullmatch(r"[a-z]?", text):
            texts[text] = None if text in texts else letter
    answer = re.sub(r"[^\S\n]+", " ", answer)  # single blanks, which also keeps the patterns below fast
    if _plain(answer) in texts:
        return texts[_plain(answer)]
    phrases = _phrases(answer, texts)
    letters = {span: letter for span, letter in _letters(answer, known).items() if not _within(span, phrases)}
    rejected = _rejections(answer, known)
    stated = {span: letter for span, letter in letters.items() if not _within(span, rejected)}
    asides = [match.span() for match in _ASIDE.finditer(answer)]
    stated = {span: letter for span, letter in stated.items() if not _within(span, asides)} or stated
    if not stated:
        refused = set(letters.values())
        told = {span: letter for span, letter in phrases.items() if letter is not None and letter not in refused}
        stated = {span: letter for span, letter in told.items() if not _denied(answer, span)}
    return _choice(_blanked(answer, phrases), stated)  # blanked, since "A. grows B. spins" is a list too


def _in_one_script(text: str) -> str:
    """
    >>> _in_one_script("答案是Ｂ，不是Ａ")
    '答案 is B; not A'
    """
    text = unicodedata.normalize("NFKC", text.replace("，", ";"))  # full-width letters; that comma divides clauses
    if not re.search(f"[{_HAN}]", text):
        return text
    for chinese, english in _CHINESE.items():
        text = re.sub(chinese, english, text)
    return re.sub(f"(?<=[{_HAN}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{_HAN}])", " ", text)


def _plain(text: str) -> str:
    """Lower case, single blanks, no punctuation around: "**Moves  left**." -> "moves left"."""
    return " ".join(text.split()).strip(" .,;:!?()[]{}*\"'`$").lower()


def _phrases(answer: str, texts: dict[str, str | None]) -> dict[Span, str | None]:
    """Return where option texts stand as whole words, in order; of two that start together the longer.

    None: the text of several options.
    """
    if not texts:
        return {}
    longest_first = sorted(texts, key=len, reverse=True)
    pattern = "|".join(r"\s".join(map(re.escape, text.split())) for text in longest_first)
    matches = re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", answer, re.IGNORECASE)
    return {match.span(): texts[_plain(match[0])] for match in matches if _plain(match[0]) in texts}


def _letters(answer: str, known: str) -> dict[Span, str]:
    """Return where something reads as an option letter, in order, rejected ones included."""
    if not known:
        return {}
    found = {}
    before = r"(?<![^\W_])(?<![^\W_]['’-])(?<!\b[^\W\d_]\.)"  # a word of its own: not the d of "I'd", the e of "i.e."
    after = r"(?![^\W_])(?!['’-][^\W_])(?!\.[^\W\d_]\.)"  # nor the i of "i.e."
    one_more = rf"(?-i:[{known}])\b"  # "A B" lists two options
    for match in re.finditer(f"{before}[{known}{known.lower()}]{after}", answer):
        letter, left, right = match[0], answer[max(0, match.start() - 20) : match.start()], answer[match.end() :]
        if letter.upper() in _ARTICLE_OR_PRONOUN and re.match(rf" (?!{_GOES_ON}|{one_more})\w", right, re.IGNORECASE):
            continue
        if letter.islower() and not (_ANNOUNCES.search(left) and _ENDS.match(right)):
            continue
        found[match.span()] = letter.upper()
    return found


def _rejections(answer: str, known: str) -> list[Span]:
    """Spans that name letters only to turn them down: "neither A, B nor C", "A and B are wrong"."""
    if not known:
        return []
    one = rf"(?:(?:option|choice|answer) )?{_OPEN}{{0,4}}(?<![^\W_])[{known}{known.lower()}](?![^\W_]){_CLOSE}{{0,4}}"
    some = rf"{one}(?:(?: ?[,&] ?{one}){{0,25}} ?,? ?(?:\b(?:or|nor|and)\b|/|&) ?{one})?"
    negated = rf"(?:{_NO}|{_LESS}){_AFTER_NO}{some}"
    refuted = rf"{some} (?:{_AUXILIARY}*(?:{_WRONG}|cannot\b|\w+n['’]t\b)|{_AUXILIARY}+(?:not|never)\b)"
    return [match.span() for pattern in (negated, refuted) for match in re.finditer(pattern, answer, re.IGNORECASE)]


def _denied(answer: str, span: Span) -> bool:
    """Return whether an option text follows a "not" with at most three words between, all in one clause."""
    left = answer[max(0, span[0] - 60) : span[0]]
    return bool(re.search(rf"{_NO}(?: (?!but\b)\w+){{0,3}} ?{_OPEN}{{0,4}}$", left, re.IGNORECASE))


def _within(span: Span, spans: Iterable[Span]) -> bool:
    return any(start <= span[0] < end for start, end in spans)


def _blanked(answer: str, spans: Iterable[Span]) -> str:
    letters = list(answer)
    for start, end in spans:
        letters[start:end] = " " * (end - start)
    return "".join(letters)


def _choice(answer: str, stated: dict[Span, str]) -> str | None:
    """The last of the stated options that is not one of several in a list."""
    lists: list[set[str]] = []
    previous_end = 0
    for (start, end), letter in stated.items():
        if lists and _LISTED.fullmatch(answer, previous_end, start):
            lists[-1].add(letter)
        else:
            lists.append({letter})
        previous_end = end
    alone = [letters for letters in lists if len(letters) == 1]
    return alone[-1].pop() if alone else None
