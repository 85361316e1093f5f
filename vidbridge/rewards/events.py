"""How well the events of a caption and of its reference cover each other.

AutoDQ, the metric of DREAM-1K (arXiv 2407.00634): a judge reads short events out of one text and labels
each as entailed, contradicted or left open by the other. Recall asks whether the caption bears out the
reference's events, precision whether the reference bears out the caption's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, Sequence, TypeVar

from vidbridge.judges.base import Judge, JudgeRequest, JudgeUnavailable, Label, Reply, parse_events, parse_labels
from vidbridge.rewards.base import UNSCORED
from vidbridge.text.tags import answer_of
from vidbridge.text.untrusted import says_nothing
from vidbridge.types import Completion, Sample

T = TypeVar("T")

STRICT: tuple[Label, ...] = ("entailment",)
LENIENT: tuple[Label, ...] = ("entailment", "neutral")


@dataclass(frozen=True)
class EventRecall:
    """Share of the reference's events that the caption entails; 0 for an empty caption."""

    judge: Judge
    kind = "entail"
    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        (reply,) = self.judge.ask([JudgeRequest(kind="extract", text=sample.answer)])
        events = parse_events(reply)
        if not events:
            raise JudgeUnavailable(f"the judge reads no event out of the reference {sample.answer!r}")
        pairs = [(events, caption) for caption in _captions(sample, completions)]
        return _shares(self.judge, pairs, STRICT)


@dataclass(frozen=True)
class EventPrecision:
    """Share of the caption's events that the reference entails; 0 for a caption without events.

    Lenient, an event that the reference leaves open is a hit too: only contradicted ones are misses.
    """

    judge: Judge
    lenient: bool = False
    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        events = _events_in(self.judge, _captions(sample, completions))
        return _shares(self.judge, [(told, sample.answer) for told in events], LENIENT if self.lenient else STRICT)


def _captions(sample: Sample, completions: Sequence[Completion]) -> list[str]:
    """Return what the completions tell; "" for one that says nothing, which costs no request."""
    captions = [answer_of(completion.text) for completion in completions]
    return ["" if says_nothing(caption, sample.answer) else caption for caption in captions]


def _events_in(judge: Judge, texts: Sequence[str]) -> list[tuple[str, ...] | None]:
    """The events of each text; none in an empty one, and None where the judge has no reply."""
    replies = iter(judge.ask([JudgeRequest(kind="extract", text=text) for text in texts if text]))
    return [_parsed(parse_events, next(replies)) if text else () for text in texts]


def _shares(judge: Judge, pairs: Sequence[tuple[tuple[str, ...] | None, str]], hits: tuple[Label, ...]) -> list[float]:
    """Return the share of events whose label is a hit, for each (events, text); 0 where either is empty."""
    requests = [JudgeRequest(kind="entail", events=events, text=text) for events, text in pairs if events and text]
    replies = iter(judge.ask(requests))
    shares = []
    for events, text in pairs:
        labels: tuple[Label, ...] | None = ()
        if events and text:
            labels = _parsed(partial(parse_labels, num_events=len(events)), next(replies))
        if events is None or labels is None:
            shares.append(UNSCORED)
        else:
            shares.append(sum(label in hits for label in labels) / len(labels) if labels else 0.0)
    return shares


def _parsed(parse: Callable[[Reply], T], reply: Reply) -> T | None:
    try:
        return parse(reply)
    except JudgeUnavailable:
        return None
