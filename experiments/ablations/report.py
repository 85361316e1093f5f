"""The table of a study out of its results alone: Markdown to read, CSV to compute with, a picture to look at."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np

from experiments.ablations import figure, results
from experiments.ablations.manifest import Claim, Manifest
from experiments.ablations.scores import Cell, Estimate, Seeds, difference, metric_of, score, tasks_of
from vidbridge.evaluation.paper_numbers import METRICS

KINDS = {"greedy": "Greedy", "sampled": "Sampled at temperature 1"}
# the column of the paper that stands for ours
PAPER = {"qa": "Video-MME", "dark_event_infer": "DEI-test", "mix_vid_qa": "Mix-test", "caption": "DREAM-1K F1"}


def write_report(name: str, manifest: Manifest, folder: Path) -> str:
    """The Markdown, after writing report.csv and report.png into ``folder``."""
    rows = load(manifest, folder)
    if not rows:
        return f"# {name}\n\nNo results yet: python -m experiments.ablations run {name}\n"
    tasks = tasks_of(rows)
    cells = list(cells_of(manifest, rows, tasks))
    titles = {row: manifest.rows[row].title for row in rows}
    columns = {task: metric_of(task, next(iter(rows[next(iter(rows))].values()))).title for task in tasks}
    (folder / "report.csv").write_text(as_csv(cells, titles), encoding="utf-8")
    figure.draw(cells, titles, columns, baseline=manifest.baseline, path=folder / "report.png")
    parts = [f"# {name}\n\n{manifest.question}\n\n{coverage(manifest, rows)}"]
    has_paper = any(manifest.rows[row].paper for row in rows)
    if manifest.claims:
        parts.append(f"## Does it hold?\n\n{claims_table(manifest, rows, columns)}")
    parts += [agreement(manifest, cells)] if has_paper else []
    for kind, heading in KINDS.items():
        these = [cell for cell in cells if cell.kind == kind]
        parts.append(f"## {heading}\n\n{scores_table(these, titles, columns)}")
        if manifest.baseline in rows:
            against = f"## {heading}, difference to {titles[manifest.baseline]}\n\n"
            parts.append(against + differences_table(these, titles, columns))
    parts.append(f"## Cost of a run, medians\n\n{cost_table(rows, titles)}")
    if has_paper:
        note = "Ours (greedy) stand before those that they are the miniature of. DEI-test is of 200, all else in %."
        parts.append(f"## The paper's figures\n\n{note}\n\n{paper_table(manifest, cells)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def load(manifest: Manifest, folder: Path) -> dict[str, Seeds]:
    """The results of each row that has some, by seed."""
    paths = {row: {seed: results.result_path(folder, row, seed) for seed in manifest.seeds} for row in manifest.rows}
    found = {
        row: {seed: results.read(path) for seed, path in seeds.items() if path.exists()} for row, seeds in paths.items()
    }
    return {row: seeds for row, seeds in found.items() if seeds}


def cells_of(manifest: Manifest, rows: Mapping[str, Seeds], tasks: Sequence[str]) -> Iterator[Cell]:
    baseline = rows.get(manifest.baseline)
    for row, seeds in rows.items():
        for kind in KINDS:
            for task in tasks:
                compared = baseline is not None and row != manifest.baseline
                yield Cell(
                    row=row,
                    kind=kind,
                    task=task,
                    score=score(seeds, kind, task),
                    difference=difference(seeds, baseline, kind, task) if compared and baseline else None,
                )


def coverage(manifest: Manifest, rows: Mapping[str, Seeds]) -> str:
    """What the numbers rest on, and what is missing."""
    missing = {row: [seed for seed in manifest.seeds if seed not in rows.get(row, {})] for row in manifest.rows}
    wanted = len(manifest.rows) * len(manifest.seeds)
    text = f"{wanted - sum(map(len, missing.values()))} of {wanted} runs"
    named = [f"{row} (seeds {', '.join(map(str, seeds))})" for row, seeds in missing.items() if seeds]
    text += f"; missing: {', '.join(named)}" if named else ""
    equal = f" Equal in all rows that train: {', '.join(manifest.equal)}" if manifest.equal else ""
    exceptions = [f"{spec.title}: not {', '.join(spec.unequal)}" for spec in manifest.rows.values() if spec.unequal]
    equal += f" (but {'; '.join(exceptions)})." if exceptions else "." if equal else ""
    return (
        f"{text}.{equal} In brackets the 95 % interval over seeds and items (bootstrap, items of one source video "
        "together); differences are paired by seed and item, and bold where the interval leaves out 0."
    )


def claims_table(manifest: Manifest, rows: Mapping[str, Seeds], columns: Mapping[str, str]) -> str:
    """Each claim as a difference that should be above zero, and whether it is."""
    papers = [papers_difference(manifest, claim) for claim in manifest.claims]
    has_paper, lines = any(map(math.isfinite, papers)), []
    for claim, paper in zip(manifest.claims, papers):
        pair = f"{claim.higher} - {claim.lower}, {columns.get(claim.task, claim.task)}"
        line = [claim.says, pair, *([f"{paper:+g}" if math.isfinite(paper) else "-"] if has_paper else [])]
        for kind in KINDS:
            both = claim.higher in rows and claim.lower in rows and claim.task in columns
            found = difference(rows[claim.higher], rows[claim.lower], kind, claim.task) if both else None
            line.append(f"{verdict(found)}: {spelt(found, '+')}" if found else "not run")
        lines.append(line)
    return table(["claim", "difference", *(["paper"] if has_paper else []), *KINDS], lines)


def verdict(estimate: Estimate) -> str:
    """Of a difference that should be above zero."""
    return "**holds**" if estimate.low > 0 else "**the opposite**" if estimate.high < 0 else "not seen"


def papers_difference(manifest: Manifest, claim: Claim) -> float:
    """In %; NaN where the paper has no figure."""
    column = PAPER.get(claim.task, "")
    higher, lower = (manifest.rows[row].paper.get(column, math.nan) for row in (claim.higher, claim.lower))
    return round(higher - lower, 1) / (2 if column == "DEI-test" else 1)


def scores_table(cells: Sequence[Cell], titles: Mapping[str, str], columns: Mapping[str, str]) -> str:
    found = {(cell.row, cell.task): cell.score for cell in cells}
    seeds = {cell.row: cell.score.num_seeds for cell in cells}
    lines = [[titles[row], str(seeds[row]), *(spelt(found[row, task]) for task in columns)] for row in seeds]
    return table(["row", "seeds", *columns.values()], lines)


def differences_table(cells: Sequence[Cell], titles: Mapping[str, str], columns: Mapping[str, str]) -> str:
    found = {(cell.row, cell.task): cell.difference for cell in cells if cell.difference}
    rows = dict.fromkeys(row for row, _ in found)
    lines = []
    for row in rows:
        estimates = [found[row, task] for task in columns]
        marked = [f"**{spelt(each, '+')}**" if each.is_clear else spelt(each, "+") for each in estimates]
        lines.append([titles[row], *marked])
    return table(["row", *columns.values()], lines)


# What a run costs: a column's title, a unit of it, and how a number is shown.
COSTS = {
    "updates": ("updates", 1, "{:.0f}"),
    "train_s": ("seconds of training", 1, "{:.0f}"),
    "tokens": ("thousand tokens sampled", 1000, "{:.0f}"),
    "peak_mb": ("MB of memory", 1, "{:.0f}"),
    "checkpoint_mb": ("MB of a checkpoint", 1, "{:.2f}"),
}


def cost_table(rows: Mapping[str, Seeds], titles: Mapping[str, str]) -> str:
    """Medians, since a run that had a neighbour says little about the others; what older results lack is left out."""
    costs = [result.cost for seeds in rows.values() for result in seeds.values()]
    shown = {key: told for key, told in COSTS.items() if all(key in cost for cost in costs)}
    lines = []
    for row, seeds in rows.items():
        medians = {key: float(np.median([result.cost[key] for result in seeds.values()])) for key in shown}
        lines.append([titles[row], *(form.format(medians[key] / unit) for key, (_, unit, form) in shown.items())])
    return table(["row", *(title for title, _, _ in shown.values())], lines)


def paper_table(manifest: Manifest, cells: Sequence[Cell]) -> str:
    """The paper's columns, those with one of ours beside them first."""
    ours = {(cell.row, PAPER.get(cell.task)): cell.score.mean for cell in cells if cell.kind == "greedy"}
    papers = {row: manifest.rows[row].paper for row, _ in ours if manifest.rows[row].paper}
    columns = list(dict.fromkeys(column for paper in papers.values() for column in paper))
    columns.sort(key=lambda column: column not in PAPER.values())  # those with one of ours first
    header, lines = ["row"], [[manifest.rows[row].title] for row in papers]
    for column in columns:
        header += ["ours", column] if column in PAPER.values() else [column]
        for line, (row, paper) in zip(lines, papers.items()):
            if column in PAPER.values():
                line.append(f"{ours[row, column]:.1f}" if (row, column) in ours else "-")
            line.append(f"{paper[column]:g}" if column in paper else "-")
    return table(header, lines)


def agreement(manifest: Manifest, cells: Iterable[Cell]) -> str:
    """How often our differences to the baseline have the paper's sign: the shape of the table in one line."""
    base = manifest.rows[manifest.baseline].paper
    counts = {"same": 0, "clearly": 0, "opposed": 0, "all": 0}
    for cell in cells:
        column = PAPER.get(cell.task)
        paper = manifest.rows[cell.row].paper
        if cell.kind != "greedy" or cell.difference is None or column not in paper or column not in base:
            continue
        same = (paper[column] - base[column]) * cell.difference.mean > 0
        counts["all"] += 1
        counts["same"] += same
        counts["clearly"] += same and cell.difference.is_clear
        counts["opposed"] += not same and cell.difference.is_clear
    pairs = ", ".join(f"{METRICS[task].title} to {column}" for task, column in PAPER.items())
    return (
        f"{pairs}: of {counts['all']} differences to {manifest.rows[manifest.baseline].title}, "
        f"{counts['same']} have the paper's sign, {counts['clearly']} of them clearly (the interval leaves out 0); "
        f"{counts['opposed']} clearly have the other."
    )


def spelt(estimate: Estimate, sign: str = "-") -> str:
    """
    >>> spelt(Estimate(mean=12.34, low=10.0, high=15.06, num_seeds=5, num_items=9), "+")
    '+12.3 [10.0, 15.1]'
    """
    return f"{_shown(estimate.mean, sign)} [{_shown(estimate.low)}, {_shown(estimate.high)}]"


def _shown(value: float, sign: str = "-") -> str:
    return format(round(value, 1) + 0.0, f"{sign}.1f")  # + 0.0: no "-0.0"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def as_csv(cells: Iterable[Cell], titles: Mapping[str, str]) -> str:
    """A line a row, kind and task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("mean", "low", "high")
    differences = [f"difference_{each}" for each in numbers]
    writer.writerow(["row", "title", "kind", "task", *numbers, *differences, "seeds", "items"])
    for cell in cells:
        scored, compared = cell.score, cell.difference
        writer.writerow(
            [cell.row, titles[cell.row], cell.kind, cell.task]
            + [f"{value:.4f}" for value in (scored.mean, scored.low, scored.high)]
            + ([f"{value:.4f}" for value in (compared.mean, compared.low, compared.high)] if compared else [""] * 3)
            + [str(scored.num_seeds), str(scored.num_items)]
        )
    return text.getvalue()
