"""The one reader of <think>..</think><answer>..</answer>. Nothing else in vidbridge looks for these tags."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Any spelling counts as a tag, so "<ANSWER>" cannot hide inside a part; only lower case is well formed.
_TAG = re.compile(r"(</?(?:think|answer)>)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Tagged:
    """The two parts of a well-formed completion, stripped."""

    thinking: str
    answer: str


def read_tags(text: str) -> Tagged | None:
    """The parts of a well-formed completion: one think block, then one answer block, around them only white space.

    >>> read_tags("<think>a red square</think> <answer>B</answer>")
    Tagged(thinking='a red square', answer='B')
    >>> read_tags("<answer>B</answer>") is None
    True
    """
    pieces = _TAG.split(text)  # text, tag, text, tag, .., text
    if pieces[1::2] != ["<think>", "</think>", "<answer>", "</answer>"]:
        return None
    before, thinking, between, answer, after = pieces[::2]
    if before.strip() or between.strip() or after.strip():
        return None
    return Tagged(thinking.strip(), answer.strip())


def answer_start(text: str) -> int | None:
    """Return where the first answer block begins; None where there is none.

    >>> answer_start("<think>x</think><answer>A</answer>"), answer_start("A")
    (16, None)
    """
    opening = (tag for tag in _TAG.finditer(text) if tag[0].lower() == "<answer>")
    return next((tag.start() for tag in opening), None)


def answer_of(text: str) -> str:
    """Return what stands in the answer block, stripped; "" unless there is exactly one block with no tag inside.

    The rest of the completion does not matter here: whether it is well formed is the business of the
    format gate, and a reward without that gate must still have something to read.

    >>> answer_of("no think block <answer> B </answer>")
    'B'
    >>> answer_of("<think>x</think><answer>A</answer><answer>B</answer>")
    ''
    """
    pieces = _TAG.split(text)
    answer_tags = [index for index, piece in enumerate(pieces) if index % 2 and "answer" in piece.lower()]
    if [pieces[index] for index in answer_tags] != ["<answer>", "</answer>"]:
        return ""
    opening, closing = answer_tags
    return pieces[opening + 1].strip() if closing == opening + 2 else ""
