"""Which number an answer states, and whether two numbers are the same, however they are written."""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import Any

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()

# A number of this grammar and no other expression gets to the algebra: 9^9^9 would keep it busy for years.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,24})(?:\.\d{1,24})?|\.\d{1,24}"
_SIGN = r"(?:(?<![\w.)])[-+] ?)?"  # no sign between two numbers: "3-4"
_NUMBER = rf"{_SIGN}(?<![^\W_])(?<!\d\.)(?:{_PLAIN})"
_EXPRESSION = re.compile(
    rf"(?P<fraction>{_SIGN}\\[dt]?frac ?\{{ ?({_PLAIN}) ?\}} ?\{{ ?({_PLAIN}) ?\}})"
    rf"|(?P<root>{_SIGN}(?:{_PLAIN})? ?\\sqrt ?\{{ ?({_PLAIN}) ?\}})"
    rf"|(?P<pi>{_SIGN}(?:{_PLAIN})? ?(?:\\pi\b|π))"
    rf"|(?P<mixed>{_SIGN}(?<![^\W_])(?P<whole>\d{{1,9}}) (?P<part>\d{{1,9}}/\d{{1,9}})(?!\d))"
    rf"|(?P<ratio>{_NUMBER} ?/ ?\d{{1,9}}(?![\d/]))"
    rf"|(?P<power>{_NUMBER} ?(?:\^|\*\*) ?\{{?-?\d{{1,2}}\}}?(?![\d^]))"
    rf"|(?P<science>{_NUMBER}(?:[eE]|(?: ?\\times ?| ?[x×*·] ?)10 ?\^ ?\{{?)(?P<exponent>[-+]?\d{{1,2}})\}}?(?!\d))"
    rf"|(?P<percent>{_NUMBER} ?(?:\\?%|percent\b|per cent\b))"
    rf"|(?P<plain>{_NUMBER})"
)
_BOXED = re.compile(r"\\boxed ?\{((?:[^{}]|\{[^{}]*\})*)\}")
_PERCENT = r"\%"
# "4, not 3": turned down, with at most two words between
_DENIED = re.compile(r"\b(?:not|never|\w+n['’]t|rather than|instead of)(?: (?!but\b)[^\W\d]+){0,2} ?$", re.IGNORECASE)
# What stands between numbers of which none is chosen, or that are one thing together: "2 or 3", "3:30", "1 000".
_LISTED = re.compile(r" ?(?:or|and|to|[-–—/:,&]|\.\.+)? ?", re.IGNORECASE)


def read_number(answer: str) -> str | None:
    """The last number that ``answer`` states, as LaTeX; None where there is none, or one of several.

    >>> [read_number(answer) for answer in ("Not 3. There are 1,200 birds.", "It is 2^3", "2 or 3")]
    ['1200', '2^{3}', None]
    """
    text = " ".join(unicodedata.normalize("NFKC", answer).replace("−", "-").split())
    boxed = _BOXED.findall(text)
    text = boxed[-1] if boxed else text
    stated = [match for match in _EXPRESSION.finditer(text) if not _DENIED.search(text[: match.start()][-60:])]
    if not stated:
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS]
        return str(_WORDS.index(words[0])) if len(set(words)) == 1 else None
    if len(stated) > 1 and _LISTED.fullmatch(text, stated[-2].end(), stated[-1].start()):
        return None
    return _latex(stated[-1])


def same_number(answer: str, reference: str) -> bool:
    """Return whether both state the same number. ValueError for a reference that states none.

    >>> same_number("about 50 %", "0.5"), same_number("3.0 cm", "3"), same_number("13", "3")
    (True, True, False)
    """
    right = read_number(reference)
    if right is None:
        raise ValueError(f"there is no number in the reference {reference!r}")
    said = read_number(answer)
    return said is not None and _equal(right, said)


def _latex(match: re.Match[str]) -> str:
    text = match[0].replace(",", "").replace(" ", "").removeprefix("+")
    sign = "-" if text.startswith("-") else ""
    kind = match.lastgroup  # the alternative, which closes after the groups inside it
    if kind == "mixed":
        whole, (upper, lower) = match["whole"], match["part"].split("/")
        return rf"{sign}({whole}+\frac{{{upper}}}{{{lower}}})"
    if kind == "ratio":
        upper, lower = text.removeprefix("-").split("/")
        return rf"{sign}\frac{{{upper}}}{{{lower}}}"
    if kind == "power":
        base, exponent = re.split(r"\^|\*\*", text)
        return rf"{base}^{{{exponent.strip('{}')}}}"
    if kind == "science":
        mantissa = re.split(r"[eE]|\\times|[x×*·]", text)[0]
        return rf"{mantissa}\cdot 10^{{{match['exponent'].removeprefix('+')}}}"
    if kind == "percent":
        return re.sub(r"\\?%|per\s?cent", r"\\%", text)
    return text.replace("π", r"\pi ").replace("dfrac", "frac").replace("tfrac", "frac")


def _equal(right: str, said: str) -> bool:
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise ValueError("to compare numbers math-verify is needed: pip install 'vidbridge[math]'") from error
    if right.endswith(_PERCENT) and said.endswith(_PERCENT):
        right, said = right.removesuffix(_PERCENT), said.removesuffix(_PERCENT)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nothing limits its time: the grammar does

    def form(latex: str) -> list[Any]:
        # no limits of its own: they are alarms, which only the main thread may set
        return parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)

    return any(
        verify(form(one), form(other), timeout_seconds=None) for one in _readings(right) for other in _readings(said)
    )


def _readings(latex: str) -> list[str]:
    """50 % is a half, and the answer "50" to a question for percents."""
    if not latex.endswith(_PERCENT):
        return [latex]
    return [latex.removesuffix(_PERCENT), rf"\frac{{{latex.removesuffix(_PERCENT)}}}{{100}}"]
