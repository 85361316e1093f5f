"""The record of a run: files that are the truth, W&B that shows them, and the console."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Mapping, Self, Sequence

import numpy as np
from rich.console import Console as RichConsole

from vidbridge.diagnostics.early_dips import early_dips
from vidbridge.diagnostics.picture import draw_diagnosis
from vidbridge.record.clips import seen_clips, write_clips
from vidbridge.record.completions import completion_rows
from vidbridge.record.console import Console
from vidbridge.record.curves import draw_curves
from vidbridge.record.files import COMPLETIONS, CURVES, DIAGNOSIS, ITEMS, METRICS, PAGE, RECORD, SUMMARY
from vidbridge.record.page import write_page
from vidbridge.record.wandb_sink import WandbSink
from vidbridge.runtime.jsonl_log import append_lines, read_lines
from vidbridge.runtime.watchdog import Watchdog
from vidbridge.types import Group, StepResult


class Tracker:
    """Records a run; a context manager that closes the bar and the W&B run however the run ends.

    The process is ended after ``hang_s`` seconds without a step and without progress of an evaluation.
    """

    def __init__(
        self,
        run_dir: Path,
        console: Console,
        wandb: WandbSink | None = None,
        *,
        completions_every: int,
        completions_groups: int,
        hang_s: float,
    ) -> None:
        self.run_dir = run_dir
        self.console = console
        self.wandb = wandb
        self.wandb_id: str | None = None  # set before entering, it is the W&B run to go on with
        self.watchdog = Watchdog(hang_s)
        self.completions_every = completions_every
        self.completions_groups = completions_groups
        self._last_step_at = 0.0

    def __enter__(self) -> Self:
        if self.wandb is not None:
            self.wandb_id = self.wandb.start(self.wandb_id)
        self.console.start()
        self.watchdog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watchdog.__exit__(kind, error, trace)
        self.console.stop()
        if self.wandb is not None:
            self.wandb.close(failed=error is not None)

    def start_evaluation(self, when: str, num_completions: int, done: int = 0) -> Callable[[int], None]:
        """Start the bar; return ``advance(n)`` for n more completions, where ``advance(0)`` is a sign of life alone."""
        advance = self.console.start_stage(f"evaluating {when}", num_completions, done)

        def on(more: int) -> None:
            self.watchdog.alive()
            advance(more)

        return on

    def start_steps(self, steps: int, done: int = 0) -> None:
        self.watchdog.alive()
        self.console.start_stage("training", steps, done)
        self._last_step_at = time.monotonic()

    def step(self, step: int, result: StepResult) -> None:
        """Record step ``step`` (from 1: the number of steps done)."""
        self.watchdog.alive()
        now = time.monotonic()
        step_s, self._last_step_at = now - self._last_step_at, now
        metrics = {**result.metrics, **pace(result.groups, step_s)}
        self.log(step, metrics)
        self.console.step(step, headline(metrics, result.groups))
        if self.completions_every and (step == 1 or step % self.completions_every == 0):
            advantages = result.advantages[: self.completions_groups]
            self.completions(step, result.groups[: self.completions_groups], "training", advantages)

    def scores(self, step: int, name: str, scores: Mapping[str, Any]) -> None:
        """Log ``name``/mean and ``name``/<task> of Scores.to_dict(), every task as a part of its maximum."""
        parts = {task: score["mean"] / score["max"] for task, score in scores["tasks"].items()}
        self.log(step, {f"{name}/{key}": value for key, value in {"mean": scores["mean"], **parts}.items()})

    def completions(
        self, step: int, groups: Sequence[Group], stage: str, advantages: Sequence[Sequence[float]] = ()
    ) -> None:
        """Append what was seen, written and earned to completions.jsonl, clips and W&B; called by all ranks.

        Each rank encodes the clips that it has decoded.
        """
        clips = seen_clips(groups)
        if not groups:
            return
        write_clips([clip for of_group in clips for clip in of_group], self.run_dir)
        rows = completion_rows(step, groups, clips, stage=stage, advantages=advantages)
        append_lines(self.run_dir / COMPLETIONS, rows)
        if self.wandb is not None:
            self.wandb.completions(step, stage, rows)

    def items(self, when: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record what each held-out item wrote and earned in the evaluation ``when``; ``kind``: sampled or greedy."""
        append_lines(self.run_dir / ITEMS, [{"when": when, "kind": kind, **row} for row in rows])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        append_lines(self.run_dir / METRICS, [{"step": step, **metrics}])
        if self.wandb is not None:
            self.wandb.log(step, metrics)

    def position(self) -> dict[str, int]:
        """Return the bytes of each file of the record, by its name."""
        paths = [self.run_dir / name for name in RECORD]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Forget what was recorded after ``position``: steps that a run which died will take again."""
        for name in RECORD:
            path = self.run_dir / name
            if path.exists():
                os.truncate(path, position.get(name, 0))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary, pictures and the page of completions, show the scores, and close the bar and W&B."""
        lines = read_lines(self.run_dir / METRICS)
        summary = {**summary, "early_dips": early_dips(lines)}
        (self.run_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        draw_curves(lines, self.run_dir / CURVES)
        draw_diagnosis(lines, self.run_dir / DIAGNOSIS)
        if (self.run_dir / COMPLETIONS).is_file():
            write_page(read_lines(self.run_dir / COMPLETIONS), self.run_dir / PAGE, run_dir=self.run_dir)
        self.console.stop()
        self.console.scores({when: summary[when] for when in ("before", "after", "scores") if when in summary})
        for task, dip in summary["early_dips"].items():
            back = f"back at step {dip['back_at']}" if dip["back_at"] else "and never came back"
            self.console.say(f"{task} fell by {dip['depth']:.2f} of its maximum on val by step {dip['step']}, {back}")
        names = sorted(path.name for path in self.run_dir.iterdir() if not path.name.startswith("."))
        self.console.say(f"written to {self.run_dir}: {', '.join(names)}")
        if self.wandb is not None:
            self.wandb.finish(summary, self.run_dir / CURVES)
            self.console.say(f"W&B: {self.wandb.where}")


class SilentTracker(Tracker):
    """The tracker of all ranks but rank 0: it writes nothing but the clips that its rank has decoded.

    It watches for signs of life as the other does.
    """

    def __init__(self, run_dir: Path, *, completions_every: int, completions_groups: int, hang_s: float) -> None:
        super().__init__(
            run_dir,
            Console(RichConsole(quiet=True)),
            completions_every=completions_every,
            completions_groups=completions_groups,
            hang_s=hang_s,
        )

    def completions(
        self, step: int, groups: Sequence[Group], stage: str, advantages: Sequence[Sequence[float]] = ()
    ) -> None:
        seen_clips(groups)

    def items(self, when: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def rewind(self, position: Mapping[str, int]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass


def pace(groups: Sequence[Group], step_s: float) -> dict[str, float]:
    """Return rollout/tokens_per_s of the tokens in ``groups``; empty where there are none.

    ``step_s`` is the time since the last step was recorded, with an evaluation or a checkpoint in between.
    """
    num_tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    return {"rollout/tokens_per_s": num_tokens / step_s} if num_tokens else {}


def headline(metrics: Mapping[str, float], groups: Sequence[Group]) -> str:
    """Return what the bar says: the mean reward and the pace, or the loss where there is no reward."""
    totals = [reward.total for group in groups for reward in group.rewards if reward.scored]
    parts = [f"reward {np.mean(totals):.2f}"] if totals else []
    if "sft/loss" in metrics:
        parts.append(f"loss {metrics['sft/loss']:.3f}")
    if "rollout/tokens_per_s" in metrics:
        parts.append(f"{metrics['rollout/tokens_per_s']:.0f} tokens/s")
    return "  ".join(parts)
