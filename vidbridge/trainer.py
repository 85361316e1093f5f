"""The loop around a step: evaluate, step after step, evaluate, save. It knows no algorithm."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ContextManager, Mapping

from torch.profiler import profile

from vidbridge import STARTED
from vidbridge.config import EvalConfig
from vidbridge.evaluate import Evaluator, held_out
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.track.tracker import Tracker
from vidbridge.types import StepResult


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """GRPO and supervised fine-tuning differ in ``step_fn`` alone."""

    step_fn: Callable[[int], StepResult]  # step number from 0
    policy: QwenVLPolicy
    evaluator: Evaluator
    tracker: Tracker
    eval: EvalConfig
    steps: int
    profile_steps: int
    run_dir: Path
    labels: Mapping[str, Any]  # what tells this run from others, copied into the summary

    def run(self) -> dict[str, Any]:
        """Everything, in order; returns what summary.json holds."""
        stage_s: Counter[str] = Counter()
        with self.tracker as tracker:
            before = held_out(self.evaluator, self.eval, tracker, "before", step=0)
            training = time.monotonic()
            tracker.start_steps(self.steps)
            for step in range(self.steps):
                with self._profiler(step):
                    result = self.step_fn(step)
                stage_s.update(stage_seconds(result.metrics))
                tracker.step(step + 1, result)
                if self.eval.every and (step + 1) % self.eval.every == 0 and step + 1 < self.steps:
                    self._look(step + 1)
            train_s = time.monotonic() - training
            after = held_out(self.evaluator, self.eval, tracker, "after", step=self.steps)
            self.policy.save(self.run_dir / "model", tags=[self.labels["algo"]])
            summary = {
                **self.labels,
                "before": {name: scores.to_dict() for name, scores in before.items()},
                "after": {name: scores.to_dict() for name, scores in after.items()},
                "train_s": round(train_s, 1),
                "total_s": round(time.monotonic() - STARTED, 1),  # with making the data and loading the model
                "stage_s": {name: round(seconds, 1) for name, seconds in stage_s.items()},
                "peak_rss_mb": round(peak_rss_mb()),
            }
            tracker.finish(summary)
        return summary

    def _look(self, step: int) -> None:
        """A small evaluation in between, on the val split, so that test stays unseen."""
        scores = self.evaluator.scores(
            "val", num_items=self.eval.every_items, num_samples=self.eval.num_samples, advance=lambda done: None
        )
        self.tracker.scores(step, "val/sampled", scores.to_dict())

    def _profiler(self, step: int) -> ContextManager[Any]:
        """A trace of each of the first ``profile_steps`` steps, one file a step."""
        if step >= self.profile_steps:
            return nullcontext()
        path = str(self.run_dir / f"trace_{step}.json")
        return profile(on_trace_ready=lambda done: done.export_chrome_trace(path))


def stage_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """
    >>> stage_seconds({"time/rollout_s": 1.5, "policy/lr": 0.1})
    {'rollout': 1.5}
    """
    prefix, suffix = "time/", "_s"
    return {
        key.removeprefix(prefix).removesuffix(suffix): value
        for key, value in metrics.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }


def peak_rss_mb() -> float:
    """The most memory this process ever held; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
