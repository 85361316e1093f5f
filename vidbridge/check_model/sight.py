"""Whether the model makes use of what it is shown: are right answers likelier than they would be without it?

Every number is a difference between two log-probabilities for one row of the data, in nats a token. Their mean over
rows has a 95 % interval over source videos. Rows are added until the interval decides, or there are as many as LOOKS
allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.check_model.base import Item, Row, group_of, in_turn, logprobs_per_token, read_items
from vidbridge.evaluation.intervals import interval, resampled_means
from vidbridge.policy.policy import Policy
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import Prompt

ORDERED = ("caption", "temporal_order")  # tasks whose answers tell what comes after what
LOOKS = (16, 32, 64)  # rows after which is asked whether the interval decides
NUM_OTHERS = 3  # answers of other rows that a right one is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Numbers of rows, [quantities, rows], with the source video of each row."""

    values: np.ndarray
    sources: Sequence[str]

    def mean(self, quantity: int = 0) -> Mean:
        values = self.values[quantity]
        low, high = interval(resampled_means(values[None, None], self.sources)[0])
        return Mean(value=float(values.mean()), low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:.2f}, {self.high:.2f}]"


def check_sight(policy: Policy, tasks: Mapping[str, TaskRows]) -> Row:
    """Answers are likelier with the frames in order than with a black screen, and than with frames shuffled."""
    ordered = [task for name, task in tasks.items() if name in ORDERED]
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {"black": np.zeros_like}
    if ordered:
        changes["shuffled"] = rng.permutation

    def differences(item: Item) -> list[float]:
        prompts = [item.prompt, *(with_frames(item.prompt, change) for change in changes.values())]
        seen, *others = logprobs_per_token(policy, [group_of(policy, item, [item.gold], prompt) for prompt in prompts])
        return [seen - other for other in others]

    items = in_turn([read_items(task) for task in ordered or tasks.values()])
    found = measure((item, differences(item)) for item in items)
    means = {name: found.mean(quantity) for quantity, name in enumerate(changes)}
    blind = [name for name, mean in means.items() if not mean.low > 0]
    told = " and ".join(f"{mean} than with {name} frames" for name, mean in means.items())
    return Row(
        name="it sees",
        ok=not blind,
        found=f"{len(found.sources)} answers, nats a token with the video: {told}"
        + ("" if ordered else "; no task here depends on the order of frames"),
        advice=f"the model does not notice {' or '.join(blind)} frames: see the rows above, the vision weights, and "
        "whether the videos show what the answers tell (build_data.py preview)"
        if blind
        else "",
    )


def with_frames(prompt: Prompt, change: Callable[[np.ndarray], np.ndarray]) -> Prompt:
    """Return the prompt with other frames at the same times."""
    return replace(prompt, clips=tuple(replace(clip, frames=change(clip.frames)) for clip in prompt.clips))


def check_answers(policy: Policy, tasks: Mapping[str, TaskRows]) -> Row:
    """Right answers are likelier than those of other rows of the same task."""
    found = {name: measure(against_others(policy, task)) for name, task in tasks.items()}
    found = {name: each for name, each in found.items() if each.sources}
    if not found:
        return Row(name="right answers", ok=None, found="skipped: all rows of a task have the same answer")
    means = {name: each.mean() for name, each in found.items()}
    together = Differences(
        values=np.concatenate([each.values for each in found.values()], axis=1),
        sources=[source for each in found.values() for source in each.sources],
    )
    wrong = [name for name, mean in means.items() if not mean.high > 0]
    ok = together.mean().low > 0 and not wrong
    told = ", ".join(f"{name} {mean}" for name, mean in means.items())
    return Row(
        name="right answers",
        ok=ok,
        found=f"{len(together.sources)} rows, nats a token above the answers of other rows: {together.mean()} ({told})",
        advice="" if ok else f"do the answers of {', '.join(wrong) or 'these tasks'} belong to their videos? Look at "
        "build_data.py preview",
    )


def against_others(policy: Policy, task: TaskRows) -> Iterator[tuple[Item, list[float]]]:
    """Return each row with how much likelier its answer is than those of the rows after it, where they differ."""
    for item in read_items(task):
        following = (task.sample(item.sample.index + n) for n in range(1, len(task)))
        others = (gold for gold in map(task.gold, following) if gold != item.gold)
        texts = list(dict.fromkeys(gold for gold, _ in zip(others, range(NUM_OTHERS))))
        if texts:
            own, *rest = logprobs_per_token(policy, [group_of(policy, item, [item.gold, *texts])])
            yield item, [own - float(np.mean(rest))]


def measure(differences: Iterable[tuple[Item, list[float]]]) -> Differences:
    """Measure as many rows as it takes until the interval of every quantity is on one side of 0."""
    rows: list[list[float]] = []
    sources: list[str] = []
    found = Differences(values=np.empty((1, 0)), sources=sources)
    for item, values in differences:
        rows.append(values)
        sources.append(item.sample.shown[0].path)
        if len(rows) in LOOKS:
            found = Differences(values=np.array(rows).T, sources=tuple(sources))
            means = map(found.mean, range(len(values)))
            if len(rows) == LOOKS[-1] or all(mean.low > 0 or mean.high < 0 for mean in means):
                return found
    return Differences(values=np.array(rows).T, sources=tuple(sources)) if rows else found
