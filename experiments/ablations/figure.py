"""report.png: a panel a task, a line a row; filled is greedy, hollow is sampled, the pale lines are the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

from matplotlib.figure import Figure

from experiments.ablations.scores import Cell

_STYLES = {"greedy": {"markerfacecolor": "C0", "color": "C0"}, "sampled": {"markerfacecolor": "white", "color": "C1"}}


def draw(
    cells: Sequence[Cell], titles: Mapping[str, str], columns: Mapping[str, str], *, baseline: str, path: Path
) -> None:
    indices = {row: -index for index, row in enumerate(titles)}
    figure = Figure(figsize=(2.6 + 2.9 * len(columns), 1.4 + 0.42 * len(titles)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (task, title) in zip(panels, columns.items()):
        for offset, (kind, style) in zip((0.14, -0.14), _STYLES.items()):
            these = {cell.row: cell.score for cell in cells if cell.task == task and cell.kind == kind}
            if baseline in these:
                axes.axvline(these[baseline].mean, color=style["color"], alpha=0.25, linewidth=1)
            means = [each.mean for each in these.values()]
            below = [each.mean - each.low for each in these.values()]
            above = [each.high - each.mean for each in these.values()]
            at = [indices[row] + offset for row in these]
            dots = {"fmt": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2, **style}
            axes.errorbar(means, at, xerr=[below, above], label=kind, **dots)
        axes.set_title(title, fontsize="medium")
        axes.set_yticks(list(indices.values()), list(titles.values()))
        axes.grid(axis="x", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), fontsize="small", frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes from the same library
