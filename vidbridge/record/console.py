"""What the person at the terminal sees: one live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidbridge.runtime.progress import Lines, clock


class Console:
    """A bar that is renamed and reset from stage to stage. ``rich`` is for tests."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        self._rich = rich or RichConsole()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._rich,
        )
        self._task = self._bar.add_task("", total=None, note="", visible=False)
        self._total = self._first = 0
        self._started = 0.0

    def start(self) -> None:
        if self._rich.is_terminal:
            self._bar.start()

    def stop(self) -> None:
        self._bar.update(self._task, visible=False)
        self._bar.stop()

    def start_stage(self, name: str, total: int, done: int = 0) -> Callable[[int], None]:
        """Begin a stage of ``total`` things, some of them ``done`` before; call the result with how many more are."""
        self._total, self._first, self._started = total, done, time.monotonic()
        self._bar.reset(self._task, total=total, completed=done, description=name, note="", visible=True)
        if not self._rich.is_terminal:
            return Lines(self.say, name, total, done).advance
        return lambda more: self._bar.advance(self._task, more)

    def step(self, step: int, note: str) -> None:
        """Step ``step`` (from 1) of the stage is done."""
        self._bar.update(self._task, completed=step, note=note)
        if not self._rich.is_terminal:
            left_s = (time.monotonic() - self._started) / (step - self._first) * (self._total - step)
            self.say(f"step {step}/{self._total}  {note}  {clock(left_s)} left")

    def say(self, text: str) -> None:
        self._rich.print(text, markup=False, highlight=False, soft_wrap=True)

    def scores(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """A table of ``scores[when][kind]``, as in summary.json: when is before or after, kind sampled or greedy."""
        columns = [(f"{kind} {when}", kinds[kind]) for when, kinds in scores.items() for kind in kinds]
        columns.sort(key=lambda column: column[0].split()[0], reverse=True)  # sampled first; stable, so before first
        table = Table(title="held-out scores, ± half of the 95 % interval")
        table.add_column("task", no_wrap=True)
        for title, _ in columns:
            table.add_column(title, justify="right")
        table.add_column("max", justify="right")
        for name, score in columns[0][1]["tasks"].items():
            table.add_row(name, *(interval(part["tasks"][name]) for _, part in columns), f"{score['max']:.2f}")
        table.add_section()
        table.add_row("all, mean / max", *(f"{part['mean']:.3f}" for _, part in columns), "1.00")
        self._rich.print(table)


def interval(score: Mapping[str, float]) -> str:
    """
    >>> interval({"mean": 0.5, "low": 0.4, "high": 0.62})
    '0.50 ±0.11'
    """
    return f"{score['mean']:.2f} ±{(score['high'] - score['low']) / 2:.2f}"
