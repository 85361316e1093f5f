"""The loop around a step: evaluate, step after step, evaluate, save. It knows no algorithm."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, ContextManager, Mapping

from torch.profiler import profile

from vidbridge import STARTED
from vidbridge.checkpoint import Checkpointer, CheckpointError, newest
from vidbridge.config import EvalConfig
from vidbridge.evaluate import Evaluator, held_out
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.seeding import random_state, set_random_state
from vidbridge.stopping import Stopped, StopSignals
from vidbridge.track.tracker import Tracker
from vidbridge.types import StepResult


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: what a checkpoint holds beside weights, optimizer and random numbers."""

    step: int = 0  # steps done
    saved_step: int = 0
    before: dict[str, Any] | None = None  # held-out scores
    stage_s: Counter[str] = field(default_factory=Counter)
    train_s: float = 0.0
    best_step: int | None = None  # of those that have a checkpoint, on val
    best_score: float = -math.inf

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stage_s": dict(self.stage_s), "saved_step": self.step}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        return cls(**{**values, "stage_s": Counter(values["stage_s"])})


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """GRPO and supervised fine-tuning differ in ``step_fn`` alone."""

    step_fn: Callable[[int], StepResult]  # step number from 0
    policy: QwenVLPolicy
    evaluator: Evaluator
    tracker: Tracker
    checkpointer: Checkpointer
    resume: bool
    eval: EvalConfig
    steps: int
    profile_steps: int
    run_dir: Path
    labels: Mapping[str, Any]  # what tells this run from others, copied into the summary
    record: Mapping[str, Any]  # the configuration; a checkpoint of another one is not gone on from
    signals: StopSignals = field(default_factory=StopSignals)

    def run(self) -> dict[str, Any]:
        """Everything, in order; returns what summary.json holds.

        SIGTERM and SIGINT end it with a checkpoint of the last step done and the exception Stopped.
        """
        with self.signals.installed(), self.tracker:
            progress = self._start()
            try:
                return self._run(progress)
            except Stopped as stopped:
                if progress.step > progress.saved_step:
                    self._save(progress, wait=True)
                self.tracker.console.say(f"{stopped}: stopped after step {progress.step}; resume=auto goes on there")
                raise
            finally:
                self.checkpointer.finish()

    def _run(self, progress: Progress) -> dict[str, Any]:
        tracker = self.tracker
        if progress.before is None:
            before = held_out(self.evaluator, self.eval, tracker, "before", step=0)
            progress.before = {name: scores.to_dict() for name, scores in before.items()}
        tracker.start_steps(self.steps, done=progress.step)
        while progress.step < self.steps:
            with self.signals.deferred():
                self._step(progress)
        after = held_out(self.evaluator, self.eval, tracker, "after", step=self.steps)
        self.policy.save(self.run_dir / "model", tags=[self.labels["algo"]])
        summary = {
            **self.labels,
            "before": progress.before,
            "after": {name: scores.to_dict() for name, scores in after.items()},
            "train_s": round(progress.train_s, 1),
            "total_s": round(time.monotonic() - STARTED, 1),  # with making the data and loading the model
            "stage_s": {name: round(seconds, 1) for name, seconds in progress.stage_s.items()},
            "peak_rss_mb": round(peak_rss_mb()),
        }
        tracker.finish(summary)
        return summary

    def _step(self, progress: Progress) -> None:
        """One step with its record, the look at val after it, and the checkpoint."""
        started = time.monotonic()
        with self._profiler(progress.step):
            result = self.step_fn(progress.step)
        progress.step += 1
        progress.stage_s.update(stage_seconds(result.metrics))
        self.tracker.step(progress.step, result)
        due = self.checkpointer.due(progress.step) or (progress.step == self.steps and self.checkpointer.every > 0)
        if self.eval.every and progress.step % self.eval.every == 0 and progress.step < self.steps:
            score = self._look(progress.step)
            if due and score > progress.best_score:
                progress.best_step, progress.best_score = progress.step, score
        progress.train_s += time.monotonic() - started
        if due:
            self._save(progress)

    def _start(self) -> Progress:
        """From nothing, or with ``resume`` from the newest checkpoint that is whole and of this configuration."""
        found, refused = newest(self.checkpointer.root) if self.resume else (None, [])
        for line in refused:
            self.tracker.console.say(f"refused {line}")
        if found is None:
            self.tracker.rewind({})
            if self.resume:
                self.tracker.console.say(f"no checkpoint to go on from in {self.checkpointer.root}: starting")
            return Progress()
        check_same(found.state["record"], self.record, found.path)
        assert self.policy.engine is not None
        self.policy.engine.load(found.path)
        set_random_state(found.state["random"])
        self.tracker.rewind(found.state["position"])
        self.tracker.console.say(f"going on from {found.path.name}")
        return Progress.from_dict(found.state["progress"])

    def _save(self, progress: Progress, *, wait: bool = False) -> None:
        assert self.policy.engine is not None
        state = {
            "progress": progress.to_dict(),
            "best_step": progress.best_step,
            "position": self.tracker.position(),
            "random": random_state(),
            "record": self.record,
        }
        self.checkpointer.save(progress.step, state, self.policy.engine.snapshot(), wait=wait)
        progress.saved_step = progress.step

    def _look(self, step: int) -> float:
        """The score of a small evaluation in between, on the val split, so that test stays unseen."""
        scores = self.evaluator.scores(
            "val", num_items=self.eval.every_items, num_samples=self.eval.num_samples, advance=lambda done: None
        )
        self.tracker.scores(step, "val/sampled", scores.to_dict())
        return scores.mean

    def _profiler(self, step: int) -> ContextManager[Any]:
        """A trace of each of the first ``profile_steps`` steps, one file a step."""
        if step >= self.profile_steps:
            return nullcontext()
        path = str(self.run_dir / f"trace_{step}.json")
        return profile(on_trace_ready=lambda done: done.export_chrome_trace(path))


# What may differ from the run that wrote a checkpoint: nothing that changes a number, but how far to go.
FREE = ("steps", "resume", "checkpoint", "track", "profile_steps", "paths", "model.device")


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """CheckpointError naming every key in which two configurations differ, but for those that are FREE."""
    before, now = flat(old), flat(new)
    differing = [
        f"  {key}: {before.get(key, 'not there')} -> {now.get(key, 'not there')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(free + ".") for free in FREE)
    ]
    if differing:
        listed = "\n".join(differing)
        raise CheckpointError(
            f"{path} is of another configuration:\n{listed}\nset these back, or choose another hydra.run.dir"
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flat({"seed": 0, "optim": {"lr": 0.1}})
    {'seed': 0, 'optim.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


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
