"""curves.png: what a run did, on one page, drawn from metrics.jsonl alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidbridge.record.metrics_file import series

# title, what the keys of a panel start and end with; "*" in between is the label
PANELS = (
    ("training reward by task", "reward/", "/total"),
    ("held-out score / maximum", "held_out/", "/mean"),
    ("score / maximum on val", "val/sampled/", ""),
    ("completion length, tokens", "rollout/completion_tokens", ""),
    ("entropy of what is learnt from, nats a token", "policy/entropy", ""),
    ("gradient norm", "policy/grad_norm", ""),
    ("supervised loss", "sft/loss", ""),  # that of GRPO is zero by construction as long as it is on-policy
)


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """One panel for each of PANELS that has something to show; no display is needed."""
    keys = keys_of(lines)
    shown = [(title, matching(keys, start, end)) for title, start, end in PANELS]
    shown = [(title, labels) for title, labels in shown if labels]
    figure = Figure(figsize=(12, 3.2 * ((len(shown) + 2) // 3)), layout="constrained")
    for number, (title, labels) in enumerate(shown, start=1):
        draw_panel(figure.add_subplot((len(shown) + 2) // 3, 3, number, title=title), lines, labels)
    figure.savefig(path, dpi=110)


def draw_panel(
    axes: Axes, lines: list[dict[str, Any]], labels: Mapping[str, str], colors: Mapping[str, Any] | None = None
) -> None:
    """The series of each key of ``labels``, over the steps; ``colors`` by label, where the page has one legend."""
    for key, label in labels.items():
        steps, values = series(lines, key)
        marker, color = "o" if len(steps) < 12 else None, colors[label] if colors else None
        (line,) = axes.plot(steps, trailing_means(values), label=label, color=color, marker=marker, markersize=3)
        axes.plot(steps, values, color=line.get_color(), alpha=0.2, zorder=1)
    if len(labels) > 1 and colors is None:
        # below the axis, where it hides no line
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def keys_of(lines: list[dict[str, Any]]) -> list[str]:
    return sorted({key for line in lines for key in line})


def trailing_means(values: list[float]) -> list[float]:
    """Return the mean of each with those before it, a twentieth of all at most, so that noise does not hide the trend.

    >>> trailing_means([1.0, 2.0, 3.0])
    [1.0, 2.0, 3.0]
    """
    width = max(len(values) // 20, 1)
    windows = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def matching(keys: list[str], start: str, end: str) -> dict[str, str]:
    """Keys of a panel with their labels; the mean of tasks comes last, so that a task has one colour in all panels.

    >>> matching(["reward/qa/total", "reward/qa/choice", "policy/lr"], "reward/", "/total")
    {'reward/qa/total': 'qa'}
    >>> matching(["val/sampled/caption", "val/sampled/mean", "val/sampled/qa"], "val/sampled/", "")
    {'val/sampled/caption': 'caption', 'val/sampled/qa': 'qa', 'val/sampled/mean': 'mean'}
    """
    fitting = [key for key in keys if key.startswith(start) and key.endswith(end)]
    labels = {key: key.removeprefix(start).removesuffix(end) for key in fitting}
    return dict(sorted(labels.items(), key=lambda item: item[1] == "mean"))
