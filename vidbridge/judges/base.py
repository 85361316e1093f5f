"""What a judge is asked and how its replies are read.

A judge is untrusted: a reply is JSON of exactly the form asked for, or it is no reply. Then what was asked
about goes unscored (JudgeUnavailable), for a guess at a score would train the policy on noise.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Sequence

Label = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[Label, ...] = ("entailment", "neutral", "contradiction")
MAX_EVENTS = 10  # read out of one text


class JudgeUnavailable(Exception):
    """There is no trustworthy reply: the judge cannot be reached or does not keep to the form."""


Kind = Literal["grade", "verdict", "extract", "entail"]
Reply = str | JudgeUnavailable  # JSON, or why there is none


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

    kind: Kind
    text: str
    question: str = ""
    reference: str = ""
    events: tuple[str, ...] = ()


class Judge(ABC):
    """Who is asked. One judge serves all rewards of a run."""

    waits: bool = False  # replies come from elsewhere: many threads may ask at once, and gain by it
    slack: float = 0.0  # the part of a reward's maximum that a gold answer may miss at the self-test
    trouble: str = ""  # why the last request without a reply has none
    where: str = ""  # for messages: who is asked and where, if it is anybody to wait for
    deadline_s: float = math.inf  # that a request is waited for
    last_failure: str = ""  # why the last attempt failed that will be repeated
    notes: str = ""  # what is not asked as the configuration says, because a server does not take it

    @abstractmethod
    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """A reply for each request, in order. May raise JudgeUnavailable for all of them, and JudgeLost."""

    def metrics(self) -> dict[str, float]:
        """Return what happened on all ranks since this was called last; called by all ranks."""
        return {}


def parse_reply(request: JudgeRequest, reply: Reply) -> object:
    """Return what the reply says; raises JudgeUnavailable unless it is exactly of the form asked for."""
    if request.kind == "entail":
        return parse_labels(reply, len(request.events))
    return {"grade": parse_score, "verdict": parse_verdict, "extract": parse_events}[request.kind](reply)


def parse_score(reply: Reply) -> int:
    """
    >>> parse_score('{"score": 2}')
    2
    """
    score = _only_value(reply, "score")
    if type(score) is not int or not 0 <= score <= 2:  # True is an int too, and 2.0 was not asked for
        raise JudgeUnavailable(f"a score is 0, 1 or 2, not {_shown(reply)}")
    return score


def parse_verdict(reply: Reply) -> bool:
    """
    >>> parse_verdict('{"verdict": false}')
    False
    """
    verdict = _only_value(reply, "verdict")
    if not isinstance(verdict, bool):
        raise JudgeUnavailable(f"a verdict is true or false, not {_shown(reply)}")
    return verdict


def parse_events(reply: Reply) -> tuple[str, ...]:
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


def parse_labels(reply: Reply, num_events: int) -> tuple[Label, ...]:
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


def _only_value(reply: Reply, key: str) -> Any:
    """The value in ``{"key": value}``; the whole reply must be that object with that one key, given once."""
    if isinstance(reply, JudgeUnavailable):
        raise reply
    try:
        # objects as tuples of pairs: a dict would silently drop repeated keys, a list might be taken for an array
        reply_pairs = json.loads(reply, object_pairs_hook=tuple)
        json.dumps(reply_pairs, ensure_ascii=False).encode()  # half a surrogate pair fits into no file
    except (ValueError, RecursionError) as error:  # not JSON, or nested without end
        raise JudgeUnavailable(f"the reply is not JSON: {_shown(reply)}") from error
    if not isinstance(reply_pairs, tuple) or [name for name, _ in reply_pairs] != [key]:
        raise JudgeUnavailable(f'the reply is not {{"{key}": ..}}: {_shown(reply)}')
    return reply_pairs[0][1]


def _shown(reply: Reply) -> str:
    text = str(reply).encode(errors="backslashreplace").decode()
    return repr(text if len(text) <= 80 else text[:77] + "...")
