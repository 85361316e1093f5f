"""Rows that a model has something to learn from: it answers each several times, and what it always gets right goes.

A caption is never right: it stays where the event F1 of several captions differs enough.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.data.rows import write_rows
from vidbridge.data.tools.job import Job
from vidbridge.errors import DataError
from vidbridge.runtime import collectives
from vidbridge.runtime.jsonl_log import append_lines, resumed_lines
from vidbridge.runtime.progress import progress
from vidbridge.tasks.rows import DrawnRows, Row, TaskRows
from vidbridge.types import Group, RewardBreakdown, Sample

SAMPLED, SUMMARY = "sampled.jsonl", "filter.json"
SPREADS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "range": lambda scores: max(scores) - min(scores),
    "std": lambda scores: float(np.std(scores)),
    "variance": lambda scores: float(np.var(scores)),
}

Advance = Callable[[int], None]  # told of more completions; of 0 while they grow
# to each sample several answers; some groups at a time
Answer = Callable[[TaskRows, Mapping[int, Sample], Advance], Iterator[list[Group]]]
Scores = dict[str, list[float]]  # of the answers to a sample, by its uid


def filter_rows(job: Job, answer: Answer, most: Callable[[str], float], *, spread: str, threshold: float) -> None:
    """``<split>.jsonl`` with the rows that stay, sampled.jsonl and filter.json; called by all ranks.

    ``most`` is what an answer to a task can earn. A second run answers only what sampled.jsonl does not hold yet.
    """
    path = job.folder / SAMPLED
    scores = collectives.all_gather(known(path))[0]
    counts: dict[str, dict[str, int]] = {}
    kept: dict[str, list[Row]] = {}
    for split, task in job.filled():
        if isinstance(task.rows, DrawnRows):
            raise DataError("rows drawn anew in each pass cannot be filtered: build_data.py build makes files of them")
        samples = {index: task.sample(index) for index in job.indices(task)}
        missing = {index: sample for index, sample in samples.items() if sample.uid not in scores}
        scores |= answered(answer, task, missing, path, most(task.name), f"{split} {task.name}")
        by_index = {index: scores.get(sample.uid, []) for index, sample in samples.items()}
        stay = [index for index, each in by_index.items() if stays(each, task.name, spread, threshold)]
        kept.setdefault(split, []).extend(task.rows[index] for index in stay)
        unscored = sum(not each for each in by_index.values())
        counts[f"{split}/{task.name}"] = {"rows": len(samples), "kept": len(stay), "unscored": unscored}
    if collectives.is_rank_0():
        for split, rows in kept.items():
            write_rows(rows, job.folder / f"{split}.jsonl")
        text = json.dumps(counts, indent=2)
        (job.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        print(f"{text}\nwritten: {job.folder}")


def answered(
    answer: Answer, task: TaskRows, samples: Mapping[int, Sample], path: Path, most: float, name: str
) -> Scores:
    """Return what the answers earn; rank 0 writes it down batch by batch. What has no score is left out."""
    fresh: Scores = {}
    with progress(name, len(samples)) as advance:
        for groups in answer(task, samples, lambda more: advance(0)):
            batch = {
                group.sample.uid: [score(each, most) for each in group.rewards if each.scored]
                for group in groups
                if group.is_scored
            }
            if collectives.is_rank_0():
                append_lines(path, [{"uid": uid, "scores": each} for uid, each in batch.items()])
            fresh |= batch
            advance(len(groups))
    return fresh


def score(reward: RewardBreakdown, most: float) -> float:
    """Event F1 of a caption, of another answer the part of the most there is to earn; a gate closes both."""
    recall, precision = (reward.terms.get(f"event_{name}") for name in ("recall", "precision"))
    if recall is None or precision is None:
        return reward.total / most
    return math.prod(reward.gates.values()) * 2 * recall * precision / max(recall + precision, 1e-9)


def stays(scores: Sequence[float], task: str, spread: str, threshold: float) -> bool:
    """Return whether a sample whose answers scored this has something to teach; not where none could be scored.

    >>> [stays(scores, "qa", "range", 0.2) for scores in ([1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [])]
    [False, True, True, False]
    >>> [stays(scores, "caption", "range", 0.2) for scores in ([0.8, 0.9], [0.5, 0.8])]
    [False, True]
    """
    if not scores:
        return False
    if task == "caption":
        return SPREADS[spread](scores) >= threshold
    return min(scores) < 1 - 1e-6


def known(path: Path) -> Scores:
    return {line["uid"]: line["scores"] for line in resumed_lines(path)}
