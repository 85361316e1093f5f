"""A judge by rule for the shapes world, where what a sentence says can be read exactly.

Two events agree when they are of one kind and neither names another shape than the other; "it" and
no subject at all agree with any. Verbs are read in every form ("is moving to the left"), and what is
denied ("never grows", "not red") is not stated.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Sequence

from vidbridge.judges.base import MAX_EVENTS, Judge, JudgeRequest, Label, Reply
from vidbridge.shapes_world.language import COLOURS, KINDS, SHAPES, SIZES, StatedEvent, read_events
from vidbridge.text.untrusted import clean

MAX_GUESSES = 3  # an answer that lists more different events than this says nothing

# What follows one of these is denied, up to the end of the clause; after "neither" up to that of its last "nor".
_CLAUSE_END = r"[.,;:!?()\n]|\b(?:but|and|then|instead(?! of))\b"
_DENIED = re.compile(
    r"\b(?:neither\b[^.;:!?\n]{0,200}\bnor|not(?! only)|never|neither|nor|cannot|no longer|\w+n['’]t"
    rf"|without(?=\s+\w+ing\b)|instead of|rather than)\b(?:(?!{_CLAUSE_END}).)*"
)
# The forms of a verb -> the one in KINDS. No "hidden": that is what a question calls the event in the dark.
_FORMS = {
    r"grow|grew|grown|growing": "grows",
    r"shrink|shrank|shrunk|shrinking": "shrinks",
    r"spin|spun|spinning": "spins",
    r"hide|hid|hiding": "hides",
}
# Verbs with what they take, be it several ("moves to the left, then up"): each gets a verb of its own.
_TAKES = {
    "moves": (r"mov(?:e|es|ed|ing)", r"\b(left|right|up|down)(?:wards?)?\b"),
    "turns": (r"turn(?:s|ed|ing)?", rf"\b({'|'.join(COLOURS)})\b"),
}
_BETWEEN = r"(?:[\s,/]|\b(?:to|to\s+the|and|or|then)\b)+"
# "moves left, right after it grows" and "turns red, blue pie grows" are about one thing taken, not two
_NOT_ONE_MORE = rf"(?!\s+(?:after|before|when|{'|'.join(SHAPES)})\b)"


class ExactJudge(Judge):
    """Replies at once and always. Raises ValueError where a reference is not in the language of the shapes world."""

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        return [json.dumps(_reply(_as_sent(request))) for request in requests]


def _as_sent(request: JudgeRequest) -> JudgeRequest:
    """The words that a judge elsewhere would get to see, so that both say the same."""
    events = tuple(map(clean, request.events))
    return replace(request, text=clean(request.text), reference=clean(request.reference), events=events)


def _reply(request: JudgeRequest) -> dict[str, object]:
    if request.kind == "grade":
        return {"score": grade(request.reference, request.text)}
    if request.kind == "verdict":
        return {"verdict": verdict(request.reference, request.text)}
    if request.kind == "extract":
        return {"events": [str(event) for event in _told(request.text)]}
    return {"labels": [entail(request.text, event) for event in request.events]}


def grade(reference: str, answer: str) -> int:
    """2: exactly the reference event. 1: its family is named, or it is among a few guesses. 0: otherwise.

    A long answer is fine as long as its words state no other event: several different ones are guesses.

    >>> [grade("the square moves left", answer) for answer in ("It moves left.", "It moves right.", "It grows.")]
    [2, 1, 0]
    """
    wanted = _the_event(reference)
    stated = _distinct(answer)
    if stated and all(_agree(event, wanted) for event in stated):
        return 2
    related = any(_same_family(event, wanted) for event in stated)
    return 1 if related and len(stated) <= MAX_GUESSES else 0


def verdict(reference: str, answer: str) -> bool:
    """Return whether the answer says what the reference says and nothing beside it.

    A reference without an event is about looks: then the answer's words for colour, shape or size must
    be the reference's, in each of the three that the reference speaks of.

    >>> verdict("the square grows", "it is growing"), verdict("red", "It is red, not blue."), verdict("red", "not red")
    (True, True, False)
    """
    wanted, stated = _distinct(reference), _distinct(answer)
    if wanted:
        return len(stated) == len(wanted) and all(map(_agree, stated, wanted))
    spoken_of = [words for words in (COLOURS, SHAPES, SIZES) if _named(words, reference)]
    if not spoken_of:
        raise ValueError(f"the exact judge finds neither event, colour, shape nor size in the reference {reference!r}")
    return all(_named(words, answer) == _named(words, reference) for words in spoken_of)


def entail(text: str, event: str) -> Label:
    """Return whether ``text`` bears out the event, tells another one of its family in its place, or is silent.

    Only the events that are extracted from ``text`` count: what goes beyond MAX_EVENTS costs no precision,
    so it must not earn recall either.

    >>> entail("the square moves left", "the square moves right"), entail("the square moves left", "it grows")
    ('contradiction', 'neutral')
    """
    claimed, told = _distinct(event), _told(text)
    if not claimed:
        return "neutral"
    if all(any(_agree(one, other) for other in told) for one in claimed):
        return "entailment"
    return "contradiction" if any(_same_family(one, other) for one in claimed for other in told) else "neutral"


def _the_event(reference: str) -> StatedEvent:
    events = _distinct(reference)
    if len(events) != 1:
        raise ValueError(f"the exact judge grades against one event, {len(events)} are in the reference {reference!r}")
    return events[0]


def _told(text: str) -> list[StatedEvent]:
    """The events that a text is credited with: the first MAX_EVENTS different ones."""
    return _distinct(text)[:MAX_EVENTS]


def _distinct(text: str) -> list[StatedEvent]:
    """Return each event once, in order. An "it" before any shape is named means the first one that is."""
    events = read_events(_in_the_language(_affirmed(text)))
    first_named = next((event.subject for event in events if event.subject), None)
    return list(dict.fromkeys(replace(event, subject=event.subject or first_named) for event in events))


def _same_subject(one: StatedEvent, other: StatedEvent) -> bool:
    return one.subject is None or other.subject is None or one.subject == other.subject


def _agree(one: StatedEvent, other: StatedEvent) -> bool:
    return one.kind == other.kind and _same_subject(one, other)


def _same_family(one: StatedEvent, other: StatedEvent) -> bool:
    return KINDS[one.kind] == KINDS[other.kind] and _same_subject(one, other)


def _named(words: Sequence[str], text: str) -> set[str]:
    return set(re.findall(rf"\b(?:{'|'.join(words)})\b", _affirmed(text)))


def _affirmed(text: str) -> str:
    """
    >>> _affirmed("The square does not grow, it spins.")
    'the square does , it spins.'
    """
    return _DENIED.sub("", text.lower())


def _in_the_language(text: str) -> str:
    """
    >>> _in_the_language("it moved to the left or up while growing")
    'it  to the moves left or moves up while grows'
    """
    for forms, form in _FORMS.items():
        text = re.sub(rf"\b(?:{forms})\b", form, text)
    for verb, (forms, taken) in _TAKES.items():
        listed = rf"\b{forms}\b({_BETWEEN}{taken}(?:{_BETWEEN}{taken}{_NOT_ONE_MORE})*)"
        text = re.sub(listed, lambda match: re.sub(taken, rf"{verb} \1", match[1]), text)
    return text
