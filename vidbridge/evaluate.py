"""Held-out scores: every task, sampled and greedy, with a bootstrap interval over the items.

The first ``num_items`` rows of a split are taken. The random numbers of an item come from (seed, task, item) alone, so
that "before" and "after" differ by the weights and by nothing else. Scored by the evaluation reward, whatever reward
is trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidbridge import dist
from vidbridge.config import EvalConfig
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.base import RolloutEngine
from vidbridge.scoring import score_groups
from vidbridge.tasks.base import Task
from vidbridge.text.tags import read_tags
from vidbridge.track.items import item_row
from vidbridge.track.tracker import Tracker
from vidbridge.types import Group, Sample

NUM_RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """In reward units; ``TaskScore(mean=0.74, max=2.0, n=64, low=0.62, high=0.86, format_frac=0.95)``."""

    mean: float
    max: float  # the most that can be earned
    n: int  # items that could be scored
    low: float  # 95 % bootstrap interval of the mean over items
    high: float
    format_frac: float  # completions that are one <think> and one <answer>


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """``mean`` is the average over tasks of mean / max, cut to [0, 1]."""

    mean: float
    tasks: Mapping[str, TaskScore]
    shown: tuple[Group, ...] = ()  # the first group of each task, for the reader
    items: tuple[Mapping[str, Any], ...] = ()  # track.items.item_row of every item that could be scored

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "tasks": {name: asdict(score) for name, score in self.tasks.items()}}


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything an evaluation needs but the question how much of it."""

    tasks: Mapping[str, Mapping[str, Task]]  # by split, then by name
    policy: QwenVLPolicy
    processor: Processor
    rollout: RolloutEngine  # at temperature 1
    reward: GatedSum
    max_rows: int  # completions in flight on a rank; bounds the prompts held in memory
    seed: int
    bad: BadSamples = field(default_factory=BadSamples)  # left out; the number of items says so

    def scores(
        self, split: str, *, num_items: int, num_samples: int = 1, greedy: bool = False, advance: Callable[[int], None]
    ) -> Scores:
        """Called by all ranks, which share the items and get the same scores.

        ``advance(n)`` is called when n more completions are done. RuntimeError when no item of a task is scored.
        """
        self.rollout.sync(self.policy)
        scores, shown, items = {}, [], []
        for name, task in self.tasks[split].items():
            samples = [task.sample(index) for index in range(min(num_items, len(task)))]
            rewards: list[list[float]] = []
            formats: list[bool] = []
            for groups in self._scored(task, samples, num_samples, greedy):
                if not rewards:
                    shown.append(groups[0])
                rewards += [[reward.total for reward in group.rewards] for group in groups if group.trainable]
                items += [item_row(group) for group in groups if group.trainable]
                formats += [read_tags(done.text) is not None for group in groups for done in group.completions]
                advance(len(groups) * num_samples)
            if not rewards:
                raise RuntimeError(f"none of {len(samples)} items of {name} could be scored: is the judge reachable?")
            scores[name] = task_score(
                np.array(rewards), self.reward.maximum(name), format_frac=float(np.mean(formats))
            )
        return Scores(
            mean=normalised_mean(scores.values()), tasks=scores, shown=tuple(shown), items=tuple(items)
        )

    def num_completions(self, split: str, num_items: int, num_samples: int = 1) -> int:
        """How many times ``advance`` counts in all."""
        return sum(min(num_items, len(task)) for task in self.tasks[split].values()) * num_samples

    def _scored(self, task: Task, samples: Sequence[Sample], num_samples: int, greedy: bool) -> Iterator[list[Group]]:
        size = max(self.max_rows // num_samples, 1) * dist.world_size()
        seed = int(np.random.default_rng([self.seed, *task.name.encode()]).integers(2**32))
        loader = Loader({task.name: task}, self.processor, self.bad)
        for first in range(0, len(samples), size):
            own = loader.own(samples[first : first + size])
            with dist.together():
                loaded = loader.load({first + nth: sample for nth, sample in own.items()}, replace=False)
                groups = self._groups(loaded, num_samples, greedy, seed)
            loader.bad.share()
            if everyones := dist.joined(groups, lighten=Group.light):
                yield everyones

    def _groups(
        self, loaded: Mapping[int, Loaded], num_samples: int, greedy: bool, seed: int
    ) -> dict[int, Group]:
        encoded = [each.encoded for each in loaded.values()]
        completions = self.rollout.generate(encoded, num_samples, greedy=greedy, seed=seed, places=list(loaded))
        groups = [
            Group(sample=each.sample, prompt=each.prompt, encoded=each.encoded, completions=done)
            for each, done in zip(loaded.values(), completions, strict=True)
        ]
        return dict(zip(loaded, score_groups(groups, self.reward)))


def held_out(evaluator: Evaluator, config: EvalConfig, tracker: Tracker, when: str, *, step: int) -> dict[str, Scores]:
    """Scores of the evaluation split: ``sampled`` (mean of several at temperature 1) and ``greedy``."""
    split, num_items, num_samples = config.split.value, config.num_items, config.num_samples
    advance = tracker.start_evaluation(
        when,
        evaluator.num_completions(split, num_items, num_samples) + evaluator.num_completions(split, num_items),
    )
    both = {
        "sampled": evaluator.scores(split, num_items=num_items, num_samples=num_samples, advance=advance),
        "greedy": evaluator.scores(split, num_items=num_items, greedy=True, advance=advance),
    }
    for name, scores in both.items():
        tracker.scores(step, f"held_out/{name}", scores.to_dict())
        tracker.completions(step, scores.shown, f"held_out/{name}")
        tracker.items(when, name, scores.items)
    return both


def task_score(rewards: np.ndarray, maximum: float, *, format_frac: float) -> TaskScore:
    """Mean and interval of rewards [items, samples]: items are resampled, because samples of one item are alike.

    A sample that could not be scored is nan; every item has one that could.
    """
    items = np.nanmean(rewards, axis=1)
    low, high = bootstrap_interval(items)
    return TaskScore(
        mean=float(items.mean()), max=maximum, n=len(items), low=low, high=high, format_frac=format_frac
    )


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """2.5 % and 97.5 % quantile of the mean of values [n] under resampling, the same on every call."""
    picks = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def normalised_mean(scores: Iterable[TaskScore]) -> float:
    """Average over tasks of mean / max, each cut to [0, 1] (hedging may push a mean below 0)."""
    return float(np.mean([np.clip(score.mean / score.max, 0.0, 1.0) for score in scores]))
