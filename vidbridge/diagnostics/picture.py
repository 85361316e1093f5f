"""diagnosis.png: what the gradients of a run say, on one page, drawn from metrics.jsonl alone."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vidbridge.record.curves import draw_panel, keys_of, matching
from vidbridge.record.metrics_file import series

COSINE = "gradient/cosine/"
PANELS = (
    ("gradient norm", "gradient/norm/", ""),
    ("score / maximum on val", "val/sampled/", ""),
    ("entropy of the reasoning, nats a token", "entropy/", "/reasoning"),
    ("entropy of the answer, nats a token", "entropy/", "/answer"),
    ("share of the absolute advantages", "advantage/", "/share"),
    ("groups that teach nothing", "advantage/", "/idle_frac"),
)


def draw_diagnosis(lines: list[dict[str, Any]], path: Path) -> None:
    """The picture; none of a run that was not looked at."""
    keys = keys_of(lines)
    if not matching(keys, "entropy/", ""):
        return
    keys = [key for key in keys if not key.endswith("/mean")]  # of tasks alone
    shown = [(title, matching(keys, start, end)) for title, start, end in PANELS]
    tasks = sorted({task for _, labels in shown for task in labels.values()})
    colors = {task: f"C{number}" for number, task in enumerate(tasks)}
    figure = Figure(figsize=(15, 6.8), layout="constrained")
    draw_cosines(figure.add_subplot(2, 4, 1), lines, keys)
    for number, (title, labels) in enumerate([panel for panel in shown if panel[1]], start=2):
        draw_panel(figure.add_subplot(2, 4, number, title=title), lines, labels, colors)
    lined = [Line2D([], [], color=color, label=task) for task, color in colors.items()]
    figure.add_subplot(2, 4, 8, frame_on=False, xticks=[], yticks=[]).legend(handles=lined, loc="center", frameon=False)
    figure.savefig(path, dpi=110)


def draw_cosines(axes: Axes, lines: list[dict[str, Any]], keys: list[str]) -> None:
    """Mean cosines over the run with their standard errors; on the diagonal those of the halves of one task."""
    pairs = {tuple(label.split("/")): key for key, label in matching(keys, COSINE, "").items()}
    tasks = sorted({task for pair in pairs for task in pair})
    means = [[math.nan] * len(tasks) for _ in tasks]
    for (one, other), key in pairs.items():
        row, column = sorted((tasks.index(one), tasks.index(other)), reverse=True)
        values = series(lines, key)[1]
        means[row][column] = statistics.fmean(values)
        error = f"\n±{statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
        mean = round(means[row][column], 2) + 0.0  # no "-0.00"
        color = "white" if abs(mean) > 0.6 else "black"
        axes.text(column, row, f"{mean:.2f}{error}", ha="center", va="center", fontsize="small", color=color)
    axes.imshow(means, cmap="RdBu", vmin=-1, vmax=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    title = "cosine between gradients, mean of the looks\n(a task with itself: two halves of its prompts)"
    axes.set_title(title, fontsize="medium")
