"""An evaluation as a run of its own: what it asks, where it stood when it was broken off, and what comes of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Sequence, cast

from omegaconf import OmegaConf

from vidbridge.config.choices import Resume, Split
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.config.instantiate import free_keys
from vidbridge.evaluation.evaluator import Evaluator, held_out
from vidbridge.record.files import COMPLETIONS, ITEMS
from vidbridge.record.tracker import Tracker
from vidbridge.runtime import collectives
from vidbridge.runtime.checkpoint import check_same
from vidbridge.runtime.jsonl_log import whole_lines


def with_benchmark(config: EvaluateConfig) -> EvaluateConfig:
    """Return the configuration in which the held-out rows are those of ``benchmark``."""
    benchmark, rows = config.benchmark, dict[str, Any]()
    if benchmark.data is not None:
        rows = {"data": benchmark.data, "tasks": benchmark.tasks}
    evaluated = replace(
        config.eval,
        split=config.eval.split if benchmark.data is None else Split.test,
        reward=benchmark.reward or config.eval.reward,
        num_items=benchmark.num_items or sys.maxsize,
        num_samples=benchmark.num_samples or config.eval.num_samples,
    )
    tokens = benchmark.max_prompt_tokens or config.model.max_prompt_tokens
    completion = benchmark.max_completion_tokens or config.rollout.max_completion_tokens
    return replace(
        config,
        eval=evaluated,
        frames=benchmark.frames or config.frames,
        model=replace(config.model, max_prompt_tokens=tokens),
        rollout=replace(config.rollout, max_completion_tokens=completion),
        **rows,
    )


def items_so_far(
    config: EvaluateConfig, public: Mapping[str, Any], run_dir: Path, tracker: Tracker
) -> list[dict[str, Any]]:
    """Return the lines of items.jsonl of this evaluation as far as it came, with resume=auto; its tables stay.

    CheckpointError when the folder is of another evaluation.
    """
    if config.resume is not Resume.auto:
        return []
    rows: list[dict[str, Any]] = []
    with collectives.fail_together():
        if collectives.is_rank_0():
            old = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
            check_same(cast(dict[str, Any], old), public, run_dir, list(free_keys(config)))
            rows, size = whole_lines(run_dir / ITEMS)
            tracker.rewind({ITEMS: size, COMPLETIONS: whole_lines(run_dir / COMPLETIONS)[1]})
    return collectives.all_gather(rows)[0]


def ask(
    evaluator: Evaluator, config: EvaluateConfig, tracker: Tracker, known: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The summary: "scores" as in training, and under "benchmark" what papers report and what was left out."""
    asked = config.benchmark
    scores = held_out(
        evaluator,
        config.eval,
        tracker,
        "the model",
        step=0,
        sampled=asked.num_samples > 0,
        greedy=asked.greedy,
        known=known,
    )
    numbers = {kind: part.numbers() for kind, part in scores.items()}
    for kind, tasks in numbers.items():
        for title, number in (pair for task in tasks.values() for pair in task.items()):
            if "value" in number:
                low, high = number["low"], number["high"]
                tracker.console.say(f"{kind}: {title} {number['value']:.1f} ({low:.1f} to {high:.1f})")
    if left_out := sorted(evaluator.bad.uids):
        tracker.console.say(f"{len(left_out)} items could not be used, and count neither as right nor as wrong")
    return {
        "scores": {kind: part.to_dict() for kind, part in scores.items()},
        "benchmark": {"name": asked.name, "prompting": asked.prompting.value, "left_out": left_out, **numbers},
    }
