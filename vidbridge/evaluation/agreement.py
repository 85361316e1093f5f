"""Two judges, or a judge and people, on the same completions: how often they say the same, beyond chance.

Grades and verdicts are compared as they are. Of captions, the labels that both give to the events of the reference:
the first judge extracts them, so that both are asked the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from vidbridge.errors import ConfigError
from vidbridge.judges.base import (
    LABELS,
    Judge,
    JudgeRequest,
    JudgeUnavailable,
    Kind,
    Reply,
    parse_events,
    parse_reply,
)
from vidbridge.judges.recorded import labelled
from vidbridge.record.completions import COLUMNS
from vidbridge.record.page import write_page
from vidbridge.rewards.base import GatedSum
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.runtime.progress import progress
from vidbridge.text.tags import answer_of
from vidbridge.text.untrusted import says_nothing

_AT_ONCE = 256  # requests, several times what a server is sent side by side
CLASSES: Mapping[Kind, tuple[Any, ...]] = {"grade": (0, 1, 2), "verdict": (False, True), "entail": LABELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A completion (a row of completions.jsonl), what both judges were asked about it, and their replies."""

    row: Mapping[str, Any]
    request: JudgeRequest
    replies: tuple[Reply, Reply]

    @property
    def read(self) -> tuple[list[Any], list[Any]] | None:
        """Return what each says, one value a grade or verdict, one an event; None unless both have a reply."""
        try:
            one, other = (parse_reply(self.request, reply) for reply in self.replies)
        except JudgeUnavailable:
            return None
        return (list(one), list(other)) if self.request.kind == "entail" else ([one], [other])  # type: ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two judges agree on one kind of request.

    ``matrix[i][j]`` counts what the first called classes[i] and the second classes[j].
    """

    classes: tuple[Any, ...]
    matrix: np.ndarray  # [K, K] int64
    unscored: int  # requests that one of them had no reply to

    def to_dict(self) -> dict[str, Any]:
        count = int(self.matrix.sum())
        return {
            "classes": list(self.classes),
            "matrix": self.matrix.tolist(),
            "n": count,
            "unscored": self.unscored,
            "same_frac": float(self.matrix.trace() / count) if count else None,
            "kappa": cohens_kappa(self.matrix),
        }


def compare(first: Judge, second: Judge, rows: Sequence[Mapping[str, Any]], reward: GatedSum) -> list[Asked]:
    """Ask both about the completions of tasks that ``reward`` has judged; what says nothing is not asked about."""
    answers = [(row, answer_of(row["completion"])) for row in rows]
    answers = [(row, answer) for row, answer in answers if not says_nothing(answer, row["reference"])]
    events = _events_of_references(first, {row["reference"] for row, _ in answers if "entail" in kinds_of(row, reward)})
    pairs = []
    for row, answer in answers:
        for kind in kinds_of(row, reward):
            if kind != "entail":
                question = row["question"]
                pairs.append((row, JudgeRequest(kind=kind, question=question, reference=row["reference"], text=answer)))
            elif events[row["reference"]]:
                pairs.append((row, JudgeRequest(kind=kind, text=answer, events=events[row["reference"]])))
    requests = [request for _, request in pairs]
    replies = zip(ask_all(first, requests, "the first judge"), ask_all(second, requests, "the second"), strict=True)
    return [Asked(row=row, request=request, replies=both) for (row, request), both in zip(pairs, replies, strict=True)]


def ask_all(judge: Judge, requests: Sequence[JudgeRequest], name: str) -> list[Reply]:
    """A reply for each request, in order, some at a time so that one sees how far it is."""
    replies: list[Reply] = []
    with progress(name, len(requests)) as advance:
        for first in range(0, len(requests), _AT_ONCE):
            some = judge.ask(requests[first : first + _AT_ONCE])
            replies += some
            advance(len(some))
    return replies


def kinds_of(row: Mapping[str, Any], reward: GatedSum) -> list[Kind]:
    """Return what a judge is asked about completions of the row's task."""
    terms = (reward.terms[name] for name in reward.weights.get(row["task"], ()))
    return list(dict.fromkeys(kind for term in terms if (kind := getattr(term, "kind", None)) is not None))


def agreements(asked: Iterable[Asked]) -> dict[Kind, Agreement]:
    """Return how two judges agree, by kind of request."""
    by_kind: dict[Kind, list[Asked]] = {}
    for each in asked:
        by_kind.setdefault(each.request.kind, []).append(each)
    return {kind: _agreement(kind, of_kind) for kind, of_kind in by_kind.items()}


def cohens_kappa(matrix: np.ndarray) -> float | None:
    """(observed - expected) / (1 - expected) of counts [K, K]; None without counts, or when chance explains all.

    >>> cohens_kappa(np.array([[20, 5], [10, 15]]))  # 35 of 50 the same, 25 by chance: 10 of the 25 that are left
    0.4
    """
    count = matrix.sum()
    if not count:
        return None
    observed = matrix.trace() / count
    expected = float(matrix.sum(axis=0) @ matrix.sum(axis=1)) / count**2
    return None if expected == 1 else round(float((observed - expected) / (1 - expected)), 12)


def read_rows(path: str | None) -> list[dict[str, Any]]:
    """The lines of a completions.jsonl; ConfigError names one that is none."""
    if path is None or not Path(path).is_file():
        raise ConfigError(f"agreement.completions must be the completions.jsonl of a run, got {path}")
    try:
        rows = read_lines(Path(path))
    except ValueError as error:
        raise ConfigError(f"agreement.completions: {path} has a line that is not JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        missing = [name for name in COLUMNS if not isinstance(row, dict) or name not in row]
        if missing:
            raise ConfigError(f"agreement.completions: {path}:{number} is no completion, it lacks {', '.join(missing)}")
    return rows


def report(asked: Sequence[Asked], folder: Path, *, run_dir: Path) -> None:
    """Into ``folder``: agreement.json, disagreements.html, and requests.jsonl, the first judge's replies as labels.

    The completions, and the clips that the page shows, are those of the run in ``run_dir``.

    For the judgement of people: put the replies of a copy of requests.jsonl right, and compare with judge=labels.
    """
    figures = {kind: agreement.to_dict() for kind, agreement in agreements(asked).items()}
    (folder / "agreement.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps(labelled(each.request, each.replies[0]), ensure_ascii=False) for each in asked]
    (folder / "requests.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_page(disagreements(asked), folder / "disagreements.html", run_dir=run_dir)
    table = Table(title="agreement of two judges")
    for column in ("asked", "compared", "unscored", "the same", "Cohen's kappa"):
        table.add_column(column, justify="right" if column != "asked" else "left")
    for kind, each in figures.items():
        shares = ["-" if each[name] is None else f"{each[name]:.3f}" for name in ("same_frac", "kappa")]
        table.add_row(kind, str(each["n"]), str(each["unscored"]), *shares)
    Console().print(table, f"written to {folder}: agreement.json, disagreements.html, requests.jsonl")


def disagreements(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """Rows for the page of completions, those in which the two judges differ; what they said stands as terms."""
    rows = []
    for each in asked:
        if each.read is not None and each.read[0] != each.read[1]:
            one, other = (", ".join(map(str, values)) for values in each.read)
            text = f"{each.request.text} (first: {one}; second: {other})"
            rows.append({**each.row, "completion": text, "total": None, "gates": {}, "terms": {}})
    return rows


def _events_of_references(judge: Judge, references: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """() where the judge has no reply: then there is nothing to compare."""
    texts = sorted(references)
    events = {}
    for text, reply in zip(texts, judge.ask([JudgeRequest(kind="extract", text=text) for text in texts])):
        try:
            events[text] = parse_events(reply)
        except JudgeUnavailable:
            events[text] = ()
    return events


def _agreement(kind: Kind, asked: Sequence[Asked]) -> Agreement:
    classes = CLASSES[kind]
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    both = [each.read for each in asked]
    for read in both:
        for one, other in zip(*read) if read is not None else ():
            matrix[classes.index(one), classes.index(other)] += 1
    return Agreement(classes=classes, matrix=matrix, unscored=both.count(None))
