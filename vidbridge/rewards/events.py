"""How well the events of a caption and of its reference cover each other.

AutoDQ, the metric of DREAM-1K (arXiv 2407.00634): a judge reads short events out of one text and labels
each as entailed, contradicted or left open by the other. Recall asks whether the caption bears out the
reference's events, precision whether the reference bears out the caption's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from vidbridge.judges.base import Judge, JudgeRequest, JudgeUnavailable, Label, parse_events, parse_labels
from vidbridge.text.tags import answer_of
from vidbridge.types import Completion, Sample

STRICT: tuple[Label, ...] = ("entailment",)
LENIENT: tuple[Label, ...] = ("entailment", "neutral")


@dataclass(frozen=True)
class EventRecall:
    """Share of the reference's events that the caption entails; 0 for an empty caption."""

    judge: Judge
    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        captions = [answer_of(completion.text) for completion in completions]
        (events,) = _events_in(self.judge, [sample.answer])
        if not events:
            raise JudgeUnavailable(f"the judge reads no event out of the reference {sample.answer!r}")
        return _shares(self.judge, [(events, caption) for caption in captions], STRICT)


@dataclass(frozen=True)
class EventPrecision:
    """Share of the caption's events that the reference entails; 0 for a caption without events.

    Lenient, an event that the reference leaves open is a hit too: only contradicted ones are misses.
    """

    judge: Judge
    lenient: bool = False
    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        captions = [answer_of(completion.text) for completion in completions]
        events = _events_in(self.judge, captions)
        return _shares(self.judge, [(told, sample.answer) for told in events], LENIENT if self.lenient else STRICT)


def _events_in(judge: Judge, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The events of each text; an empty text has none and costs no request."""
    replies = iter(judge.ask([JudgeRequest(kind="extract", text=text) for text in texts if text]))
    return [parse_events(next(replies)) if text else () for text in texts]


def _shares(judge: Judge, pairs: Sequence[tuple[tuple[str, ...], str]], hits: tuple[Label, ...]) -> list[float]:
    """For each (events, text) the share of events whose label is a hit; 0 where either is empty."""
    asked = [bool(events and text) for events, text in pairs]
    requests = [
        JudgeRequest(kind="entail", events=events, text=text) for (events, text), ask in zip(pairs, asked) if ask
    ]
    replies = iter(judge.ask(requests))
    shares = []
    for (events, _), ask in zip(pairs, asked):
        labels = parse_labels(next(replies), len(events)) if ask else ()
        shares.append(sum(label in hits for label in labels) / len(labels) if labels else 0.0)
    return shares
