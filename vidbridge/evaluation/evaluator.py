"""Held-out scores: every task, sampled and greedy, with a bootstrap interval over the source videos.

The first ``num_items`` rows of a split are taken. The random numbers of an item come from (seed, task, item) alone, so
that "before" and "after" differ by the weights and by nothing else, and so that an evaluation which was broken off goes
on with the items that it lacks. Scored by the evaluation reward, whatever reward is trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.config.schema import EvalConfig
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.evaluation import paper_numbers
from vidbridge.evaluation.intervals import interval, resampled_means
from vidbridge.evaluation.items import earned, is_scored, item_row
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.record.tracker import Tracker
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import score_groups
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.tasks.rows import TaskRows
from vidbridge.text import prompts
from vidbridge.types import Group, Sample, SamplingParams

ItemRow = Mapping[str, Any]  # of track.items


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """In reward units; ``TaskScore(mean=0.74, max=2.0, n=64, low=0.62, high=0.86, format_frac=0.95)``."""

    mean: float
    max: float  # the most that can be earned
    n: int  # items that could be scored
    low: float  # 95 % bootstrap interval of the mean over source videos
    high: float
    format_frac: float  # completions that are one <think> and one <answer>


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """``mean`` is the average over tasks of mean / max, cut to [0, 1]."""

    mean: float
    tasks: Mapping[str, TaskScore]
    shown: tuple[Group, ...] = ()  # the first group of each task that was asked here, for the reader
    items: Mapping[str, Sequence[ItemRow]] = field(default_factory=dict)  # by task, in the order of its rows

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "tasks": {name: asdict(score) for name, score in self.tasks.items()}}

    def numbers(self) -> dict[str, Any]:
        """Return what papers report, by task, and how many items there were, were scored and could not be used."""
        found = {}
        for name, score in self.tasks.items():
            scored = [row for row in self.items[name] if is_scored(row)]
            items, sources = [earned(row) for row in scored], [row["source"] for row in scored]
            found[name] = {
                **paper_numbers.table(name, score.max, items, sources),
                "items": {"scored": len(scored), "without a judge's reply": len(self.items[name]) - len(scored)},
            }
            categories = [row.get("categories", {}) for row in scored]
            if any(categories):
                found[name]["by category"] = paper_numbers.by_category(name, score.max, items, sources, categories)
        return found


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything an evaluation needs but the question how much of it."""

    tasks: Mapping[str, Mapping[str, TaskRows]]  # by split, then by name
    policy: Policy
    processor: Processor
    rollout: RolloutEngine
    sampling: SamplingParams
    reward: GatedSum
    max_rows: int  # completions in flight on a rank; bounds the prompts held in memory
    seed: int
    bad: BadSamples = field(default_factory=BadSamples)  # left out; the number of items says so
    direct: bool = False  # tasks are asked for the bare answer: it is all of the reply

    def scores(
        self,
        split: str,
        *,
        num_items: int,
        num_samples: int = 1,
        greedy: bool = False,
        advance: Callable[[int], None],
        known: Iterable[ItemRow] = (),
        note: Callable[[Sequence[ItemRow]], None] = lambda rows: None,
    ) -> Scores:
        """Called by all ranks, which share the items and get the same scores.

        ``advance(n)`` is called when n more completions are done, and with 0 as long as they grow; ``note(rows)`` with
        what they are. Items that are ``known`` are not asked again. RuntimeError when no item of a task is scored.
        """
        self.rollout.sync(self.policy)
        rows = {row["uid"]: row for row in known}
        scores: dict[str, TaskScore] = {}
        items: dict[str, list[ItemRow]] = {}
        shown: list[Group] = []
        for name, task in self.tasks[split].items():
            samples = {index: task.sample(index) for index in range(min(num_items, len(task)))}
            lacking = {index: sample for index, sample in samples.items() if sample.uid not in rows}
            for groups in self.scored(task, lacking, advance, num_samples=num_samples, greedy=greedy):
                if not any(group.sample.task == name for group in shown):
                    shown.append(groups[0])
                fresh = [item_row(group) for group in groups]
                note(fresh)
                rows.update({row["uid"]: row for row in fresh})
            items[name] = [rows[sample.uid] for sample in samples.values() if sample.uid in rows]
            if not any(map(is_scored, items[name])):
                raise RuntimeError(f"none of {len(samples)} items of {name} could be scored: is the judge reachable?")
            scores[name] = task_score(items[name], self.reward.maximum(name))
        return Scores(mean=normalised_mean(scores.values()), tasks=scores, shown=tuple(shown), items=items)

    def num_completions(self, split: str, num_items: int, num_samples: int = 1) -> int:
        """Return how many there are in all, known ones too."""
        return sum(min(num_items, len(task)) for task in self.tasks[split].values()) * num_samples

    def scored(
        self,
        task: TaskRows,
        samples: Mapping[int, Sample],
        advance: Callable[[int], None],
        *,
        num_samples: int,
        greedy: bool = False,
    ) -> Iterator[list[Group]]:
        """Some groups at a time, those that can be read. What is sampled belongs to the number of the sample."""
        size = max(self.max_rows // num_samples, 1) * collectives.world_size()
        seed = int(np.random.default_rng([self.seed, *task.name.encode()]).integers(2**32))
        loader = Loader({task.name: task}, self.processor, self.bad)
        numbers = list(samples)
        for first in range(0, len(numbers), size):
            chunk = numbers[first : first + size]
            own = loader.own([samples[number] for number in chunk])
            with collectives.fail_together():
                wanted = {chunk[nth]: sample for nth, sample in own.items()}
                loaded = loader.load(wanted, replace=False)
            with collectives.fail_together():
                groups = self._groups(loaded, num_samples, greedy, seed, advance)
            loader.bad.share()
            advance((len(chunk) - len(loaded)) * num_samples)  # those of other ranks, and those that cannot be read
            if everyones := collectives.gather_by_index(groups, lighten=Group.light):
                yield everyones

    def _groups(
        self, loaded: Mapping[int, Loaded], num_samples: int, greedy: bool, seed: int, advance: Callable[[int], None]
    ) -> dict[int, Group]:
        completions = self.rollout.generate(
            [each.encoded for each in loaded.values()],
            num_samples,
            replace(self.sampling, greedy=greedy),
            seed=seed,
            indices=list(loaded),
            ended=lambda index, done: advance(len(done)),
            progress=lambda share: advance(0),
        )
        if self.direct:
            completions = [tuple(replace(d, text=prompts.as_answer(d.text)) for d in done) for done in completions]
        groups = [
            Group(sample=each.sample, prompt=each.prompt, encoded=each.encoded, completions=done)
            for each, done in zip(loaded.values(), completions, strict=True)
        ]
        return dict(zip(loaded, score_groups(groups, self.reward)))


def held_out(
    evaluator: Evaluator,
    config: EvalConfig,
    tracker: Tracker,
    when: str,
    *,
    step: int,
    sampled: bool = True,
    greedy: bool = True,
    known: Iterable[ItemRow] = (),
) -> dict[str, Scores]:
    """Scores of the evaluation split: ``sampled`` (mean of several at temperature 1) and ``greedy``.

    ``known``: lines of items.jsonl of an evaluation that was broken off; the new ones go there as they are done.
    """
    split, num_items = config.split.value, config.num_items
    kinds = {**({"sampled": config.num_samples} if sampled else {}), **({"greedy": 1} if greedy else {})}
    known = list(known)
    advance = tracker.start_evaluation(
        when,
        sum(evaluator.num_completions(split, num_items, number) for number in kinds.values()),
        done=sum(kinds.get(row["kind"], 0) for row in known),
    )
    found = {}
    for kind, num_samples in kinds.items():
        found[kind] = scores = evaluator.scores(
            split,
            num_items=num_items,
            num_samples=num_samples,
            greedy=kind == "greedy",
            advance=advance,
            known=[row for row in known if row["kind"] == kind],
            note=lambda rows, kind=kind: tracker.items(when, kind, rows),  # type: ignore[misc]
        )
        tracker.scores(step, f"held_out/{kind}", scores.to_dict())
        tracker.completions(step, scores.shown, f"held_out/{kind}")
    return found


def task_score(rows: Sequence[ItemRow], maximum: float) -> TaskScore:
    """Mean and interval of the total: source videos are resampled, because what was made of one of them is alike.

    An item counts with the mean of its samples that could be scored, if there is one.
    """
    scored = [row for row in rows if is_scored(row)]
    items = np.array([np.nanmean(earned(row)["total"]) for row in scored])
    low, high = interval(resampled_means(items[None, None], [row["source"] for row in scored])[0])
    well_formed = [each for row in rows for each in row["well_formed"]]
    return TaskScore(
        mean=float(items.mean()),
        max=maximum,
        n=len(items),
        low=low,
        high=high,
        format_frac=float(np.mean(well_formed)),
    )


def normalised_mean(scores: Iterable[TaskScore]) -> float:
    """Average over tasks of mean / max, each cut to [0, 1] (hedging may push a mean below 0)."""
    return float(np.mean([np.clip(score.mean / score.max, 0.0, 1.0) for score in scores]))
