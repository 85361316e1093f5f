"""What a judge is asked and how its replies are read.

A judge is untrusted: a reply is JSON of exactly the form asked for, or it is no reply. Then the
group goes unscored (JudgeUnavailable), for a guess at a score would train the policy on noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Sequence

Label = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[Label, ...] = ("entailment", "neutral", "contradiction")
MAX_EVENTS = 10  # read out of one text


class JudgeUnavailable(Exception):
    """There is no trustworthy reply: the judge cannot be reached or does not keep to the form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """One thing to be judged.

    | kind    | question | reference | text | events | reply |
    |---------|---|---|------------------------------|---|-------------------------------------------|
    | grade   | x | x | the answer                   |   | {"score": 0, 1 or 2}                      |
    | verdict | x | x | the answer                   |   | {"verdict": true or false}                |
    | extract |   |   | what to read events from     |   | {"events": ["the square grows", ..]}      |
    | entail  |   |   | what should bear events out  | x | {"labels": ["entailment", "neutral", ..]} |
    """

    kind: Literal["grade", "verdict", "extract", "entail"]
    text: str
    question: str = ""
    reference: str = ""
    events: tuple[str, ...] = ()


class Judge(Protocol):
    def ask(self, requests: Sequence[JudgeRequest]) -> list[str]:
        """One JSON reply for each request, in order. Raises JudgeUnavailable."""


def parse_score(reply: str) -> int:
    """
    >>> parse_score('{"score": 2}')
    2
    """
    score = _only_value(reply, "score")
    if type(score) is not int or not 0 <= score <= 2:  # True is an int too, and 2.0 was not asked for
        raise JudgeUnavailable(f"a score is 0, 1 or 2, not {_shown(reply)}")
    return score


def parse_verdict(reply: str) -> bool:
    """
    >>> parse_verdict('{"verdict": false}')
    False
    """
    verdict = _only_value(reply, "verdict")
    if not isinstance(verdict, bool):
        raise JudgeUnavailable(f"a verdict is true or false, not {_shown(reply)}")
    return verdict


def parse_events(reply: str) -> tuple[str, ...]:
    """
    >>> parse_events('{"events": ["the square grows"]}')
    ('the square grows',)
    """
    events = _only_value(reply, "events")
    if not isinstance(events, list) or not all(isinstance(event, str) and event.strip() for event in events):
        raise JudgeUnavailable(f"events are a list of sentences, not {_shown(reply)}")
    if len(events) > MAX_EVENTS:
        raise JudgeUnavailable(f"at most {MAX_EVENTS} events were asked for, {len(events)} came")
    return tuple(events)


def parse_labels(reply: str, num_events: int) -> tuple[Label, ...]:
    """
    >>> parse_labels('{"labels": ["entailment", "neutral"]}', 2)
    ('entailment', 'neutral')
    """
    labels = _only_value(reply, "labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label in LABELS for label in labels):
        raise JudgeUnavailable(f"labels are a list of {', '.join(LABELS)}, not {_shown(reply)}")
    if len(labels) != num_events:
        raise JudgeUnavailable(f"{num_events} events need as many labels, {len(labels)} came")
    return tuple(labels)


def _only_value(reply: str, key: str) -> Any:
    """The value in ``{"key": value}``; the whole reply must be that object with that one key, given once."""
    try:
        # objects as tuples of pairs: a dict would silently drop repeated keys, a list might be taken for an array
        reply_pairs = json.loads(reply, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:  # not JSON, or nested without end
        raise JudgeUnavailable(f"the reply is not JSON: {_shown(reply)}") from error
    if not isinstance(reply_pairs, tuple) or [name for name, _ in reply_pairs] != [key]:
        raise JudgeUnavailable(f'the reply is not {{"{key}": ..}}: {_shown(reply)}')
    return reply_pairs[0][1]


def _shown(reply: str) -> str:
    return repr(reply if len(reply) <= 80 else reply[:77] + "...")
