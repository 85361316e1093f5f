"""The language of the embedded shapes world: its words, and how to read events back from a sentence.

The renderer, the questions and the exact judge all speak from these tables, so a caption can be
checked without a model: an event is a subject (a shape) and a kind ("moves left").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SHAPES = ("square", "triangle", "cross", "pie")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "medium", "big")

# kind -> family. Two kinds of one family contradict each other as accounts of the same moment.
KINDS = {
    "moves left": "move",
    "moves right": "move",
    "moves up": "move",
    "moves down": "move",
    "grows": "size",
    "shrinks": "size",
    "turns red": "colour",
    "turns green": "colour",
    "turns blue": "colour",
    "turns yellow": "colour",
    "spins": "act",
    "hides": "act",
}
# Families that leave a trace: what happened can be told from the frames before and after.
LASTING = ("move", "size", "colour")

_WORDS = re.compile(
    r"\b(?:(?P<shape>{})|(?P<kind>{}))\b".format(
        "|".join(SHAPES), "|".join(kind.replace(" ", r"\s+") for kind in KINDS)
    ),
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StatedEvent:
    """An event as a sentence states it; ``subject`` is None when no shape was named before it."""

    subject: str | None
    kind: str

    def __str__(self) -> str:
        return f"the {self.subject} {self.kind}" if self.subject else f"it {self.kind}"


def read_events(text: str) -> list[StatedEvent]:
    """Events in the order stated, repeats kept; "it" and "the shape" refer to the last named shape.

    >>> [str(event) for event in read_events("First the square moves left, then it grows.")]
    ['the square moves left', 'the square grows']
    """
    events = []
    subject = None
    for match in _WORDS.finditer(text):
        if match["shape"]:
            subject = match["shape"].lower()
        else:
            events.append(StatedEvent(subject, " ".join(match["kind"].lower().split())))
    return events
