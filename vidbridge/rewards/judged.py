"""Open answers that a judge compares with the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Literal, Sequence

from vidbridge.judges.base import Judge, JudgeRequest, JudgeUnavailable, Reply, parse_score, parse_verdict
from vidbridge.rewards.base import UNSCORED
from vidbridge.text.tags import answer_of
from vidbridge.text.untrusted import says_nothing
from vidbridge.types import Completion, Sample


@dataclass(frozen=True)
class Grade:
    """2 when the answer covers the reference entirely, 1 partly, 0 not at all."""

    judge: Judge
    kind = "grade"
    maximum = 2.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return _compare(self.judge, "grade", parse_score, sample, completions)


@dataclass(frozen=True)
class Verdict:
    """1 when the answer says the same as the reference, else 0."""

    judge: Judge
    kind = "verdict"
    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return _compare(self.judge, "verdict", parse_verdict, sample, completions)


def _compare(
    judge: Judge,
    kind: Literal["grade", "verdict"],
    parse: Callable[[Reply], float],
    sample: Sample,
    completions: Sequence[Completion],
) -> list[float]:
    """Return a score for each answer of the group, by one call; one that says nothing is 0 and costs no request."""
    answers = [answer_of(completion.text) for completion in completions]
    asked = [not says_nothing(answer, sample.answer) for answer in answers]
    requests = [
        JudgeRequest(kind=kind, question=sample.question, reference=sample.answer, text=answer)
        for answer, ask in zip(answers, asked)
        if ask
    ]
    replies = iter(judge.ask(requests))
    return [_number(parse, next(replies)) if ask else 0.0 for ask in asked]


def _number(parse: Callable[[Reply], float], reply: Reply) -> float:
    try:
        return float(parse(reply))
    except JudgeUnavailable:
        return UNSCORED
