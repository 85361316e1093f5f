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
from typing import Any, Callable, ContextManager, Mapping, Protocol, Sequence

from torch.profiler import profile

from vidbridge import STARTED
from vidbridge.config.schema import EvalConfig
from vidbridge.errors import RolloutLost, Stopped
from vidbridge.evaluation.evaluator import Evaluator, held_out
from vidbridge.policy.policy import Policy
from vidbridge.record.tracker import Tracker
from vidbridge.runtime import collectives
from vidbridge.runtime.checkpoint import Checkpoint, Checkpointer, check_same, fingerprint, newest
from vidbridge.runtime.random_state import random_state, set_random_state
from vidbridge.runtime.signals import StopSignals
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


class Kept(Protocol):
    """Something that a checkpoint holds beside weights, optimizer and progress; called by all ranks."""

    def snapshot(self) -> Callable[[Path], None]:
        """Return what writes this rank's files into a folder, of the state as it is now."""

    def load(self, folder: Path) -> None:
        """Go on from what a snapshot wrote."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """GRPO and supervised fine-tuning differ in ``step_fn`` alone."""

    step_fn: Callable[[int], StepResult]  # step number from 0
    policy: Policy
    evaluator: Evaluator
    tracker: Tracker
    checkpointer: Checkpointer
    resume: bool
    eval: EvalConfig
    steps: int
    first_look: bool  # at val before the first step too: from where a dip is measured
    profile_steps: int
    run_dir: Path
    labels: Mapping[str, Any]  # what tells this run from others, copied into the summary
    record: Mapping[str, Any]  # the configuration; a checkpoint of another one is not gone on from
    free: Sequence[str]  # the keys of it that may differ
    kept: Sequence[Kept] = ()
    signals: StopSignals = field(default_factory=StopSignals)

    def run(self) -> dict[str, Any]:
        """Everything, in order; returns what summary.json holds.

        SIGTERM and SIGINT end it with a checkpoint of the last step done and the exception Stopped. RolloutLost leaves
        such a checkpoint too.
        """
        found = self._found()
        self.tracker.wandb_id = found.state["wandb_id"] if found else None
        with self.signals.installed(), self.tracker:
            progress = self._start(found)
            try:
                return self._run(progress)
            except (Stopped, RolloutLost) as ended:
                if ended.agreed and progress.step > progress.saved_step:
                    self._save(progress, wait=True)
                done, saved = progress.step, progress.saved_step
                why = ended if isinstance(ended, Stopped) else "the rollout is lost"
                self.tracker.console.say(f"{why}: stopped after step {done}; resume=auto goes on from step {saved}")
                raise
            finally:
                self.checkpointer.finish()

    def _run(self, progress: Progress) -> dict[str, Any]:
        tracker = self.tracker
        if self.eval.before and progress.before is None:
            before = held_out(self.evaluator, self.eval, tracker, "before", step=0)
            progress.before = {name: scores.to_dict() for name, scores in before.items()}
        if self.first_look and self.eval.every and progress.step == 0:
            self._look(0)
        tracker.start_steps(self.steps, done=progress.step)
        with self.signals.deferred():
            while progress.step < self.steps:
                self._step(progress)
                self.signals.check()
        after = held_out(self.evaluator, self.eval, tracker, "after", step=self.steps)
        self.policy.save(self.run_dir / "model", tags=[self.labels["algo"]])
        summary = {
            **self.labels,
            **({"before": progress.before} if progress.before else {}),
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
        # many ranks cannot agree on a checkpoint in the middle of the last evaluation, so they have one before it
        last = progress.step == self.steps and (self.checkpointer.every > 0 or collectives.world_size() > 1)
        due = last or self.checkpointer.due(progress.step)
        if self.eval.every and progress.step % self.eval.every == 0 and progress.step < self.steps:
            score = self._look(progress.step)
            if due and score > progress.best_score:
                progress.best_step, progress.best_score = progress.step, score
        progress.train_s += time.monotonic() - started
        if due:
            self._save(progress)

    def _found(self) -> Checkpoint | None:
        """Load the newest checkpoint that is whole, with ``resume``: rank 0 looks, all go on from what it finds."""
        if not self.resume:
            return None
        looked: tuple[Checkpoint | None, list[str]] = (None, [])
        with collectives.fail_together():
            if collectives.is_rank_0():
                looked = newest(self.checkpointer.root)
        found, refused = collectives.all_gather(looked)[0]
        for line in refused:
            self.tracker.console.say(f"refused {line}")
        if found is None:
            self.tracker.console.say(f"no checkpoint to go on from in {self.checkpointer.root}: starting")
        else:
            check_same(found.state["record"], self._record(), found.path, self.free)
        return found

    def _start(self, found: Checkpoint | None) -> Progress:
        """Start from nothing, or from ``found``, a checkpoint of the same configuration."""
        if found is None:
            self.tracker.rewind({})
            return Progress()
        assert self.policy.engine is not None
        with collectives.fail_together():
            for kept in (self.policy.engine, *self.kept):
                kept.load(found.path)
        set_random_state(found.state["random"][collectives.rank()])
        self.tracker.rewind(found.state["position"])
        self.tracker.console.say(f"going on from {found.path.name}")
        return Progress.from_dict(found.state["progress"])

    def _record(self) -> dict[str, Any]:
        """The configuration and how many ranks share the work: a checkpoint has the parts of so many."""
        return {**self.record, "world_size": collectives.world_size()}

    def _save(self, progress: Progress, *, wait: bool = False) -> None:
        assert self.policy.engine is not None
        state = {
            "progress": progress.to_dict(),
            "best_step": progress.best_step,
            "position": self.tracker.position(),
            "random": collectives.all_gather(random_state()),  # by rank
            "record": self._record(),
            "fingerprint": fingerprint(self._record(), self.free),
            "wandb_id": self.tracker.wandb_id,
        }
        snapshots = [kept.snapshot() for kept in (*self.kept, self.policy.engine)]

        def fill(folder: Path) -> None:
            for write in snapshots:
                write(folder)

        self.checkpointer.save(progress.step, state, fill, wait=wait)
        progress.saved_step = progress.step

    def _look(self, step: int) -> float:
        """The score of a small evaluation in between, on the val split, so that test stays unseen."""
        scores = self.evaluator.scores(
            "val",
            num_items=self.eval.every_items,
            num_samples=self.eval.num_samples,
            advance=lambda done: self.tracker.watchdog.alive(),
        )
        self.tracker.scores(step, "val/sampled", scores.to_dict())
        return scores.mean

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
