"""completions.html: what the policy wrote, as a page that needs no network, made from completions.jsonl alone."""

from __future__ import annotations

import base64
import html
import os
from itertools import groupby
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence
from urllib.parse import quote

from vidbridge.record.clips import is_image, shown
from vidbridge.text.tags import read_tags

MAX_EMBEDDED_BYTES = 200_000  # larger clips are linked, so that the page stays light
MAX_GROUPS = 100  # the newest; with their clips at most some 30 MB, however long the run

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 100em; padding: 0 1.5em; color: #222; }
nav { position: sticky; top: 0; background: #fff; padding: .6em 0; border-bottom: 1px solid #ccc; z-index: 1; }
nav label { margin-right: 1.2em; white-space: nowrap; }
section { display: grid; grid-template-columns: 240px minmax(0, 1fr); gap: 0 1.6em; padding: 1.2em 0; }
figure { margin: 0 0 .8em; }
figcaption { color: #777; font-size: 12.5px; }
section { border-bottom: 1px solid #ccc; overflow-wrap: anywhere; }
video, img { width: 240px; image-rendering: pixelated; background: #eee; }
h3 { margin: 0 0 .3em; font-size: 1em; }
.where { color: #777; font-weight: normal; }
.siblings { display: grid; grid-template-columns: repeat(auto-fill, minmax(19em, 1fr)); gap: .8em; margin-top: .8em; }
article { border-left: 4px solid #ccc; background: #f7f7f7; padding: .5em .8em; }
article.up { border-color: #2a9d5c; }
article.down { border-color: #d1495b; }
.earned { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.text { white-space: pre-wrap; }
.written { max-height: 32em; overflow: auto; margin-top: .4em; }
.thinking { color: #666; margin-bottom: .4em; }
.parts { color: #777; font-size: 12.5px; margin-top: .4em; }
@media (max-width: 50em) { section { grid-template-columns: minmax(0, 1fr); } }
"""


def write_page(rows: Sequence[Mapping[str, Any]], path: Path, *, run_dir: Path) -> None:
    """One section a group: its clips, the question, and its completions side by side with what they earned and why.

    ``rows`` are those of record/completions.py, siblings next to each other; their clips lie in ``run_dir``. The newest
    MAX_GROUPS, the last one first.
    """
    groups = [list(group) for _, group in groupby(rows, group_of)]
    newest = groups[: -MAX_GROUPS - 1 : -1]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    sections = [_section(group, tasks.index(group[0]["task"]), run_dir, path.parent) for group in newest]
    all_are = f"<p>The newest {len(newest)} of {len(groups)} groups; all are in completions.jsonl.</p>\n"
    path.write_text(
        "<!doctype html>\n<meta charset='utf-8'>\n<meta name='viewport' content='width=device-width'>\n"
        f"<title>completions</title>\n<style>{_STYLE}{_hiding(tasks)}</style>\n<h1>Completions</h1>\n"
        f"{_choice_of(tasks)}\n{all_are if len(newest) < len(groups) else ''}{''.join(sections)}",
        encoding="utf-8",
        errors="replace",  # half a surrogate pair, as in the name of a file
    )


def _choice_of(tasks: Sequence[str]) -> str:
    """Return the choice of a task to look at. The page has no script: what is hidden is a matter of its style."""
    names = ["all tasks", *map(html.escape, tasks)]
    buttons = [f"<label><input type='radio' name='task' id='t{n - 1}'> {name}</label>" for n, name in enumerate(names)]
    hint = "Clips are what the model saw; point at one for its controls. Green: above the group's mean, red: below."
    return f"<nav>{''.join(buttons)}<span class='where'>{hint}</span></nav>".replace("id='t-1'", "id='all' checked")


def _hiding(tasks: Sequence[str]) -> str:
    return "\n".join(f"body:has(#t{n}:checked) section:not(.t{n}) {{ display: none; }}" for n in range(len(tasks)))


def _section(rows: Sequence[Mapping[str, Any]], task: int, run_dir: Path, folder: Path) -> str:
    first = rows[0]
    if "clips" in first:
        figures = [
            _figure(_source(run_dir / clip["path"], folder), shown(clip), is_image=is_image(clip))
            for clip in first["clips"]
        ]
    else:  # of a run that only wrote down which file it was
        figures = [_figure(_link(Path(first["video"]), folder))]
    return (
        f"<section class='t{task}'><div>{''.join(figures)}</div><div>"
        f"<h3>{html.escape(first['uid'])} <span class='where'>step {step_of(first)}</span></h3>"
        f"{_text(first['question'])}reference: <b><bdi>{html.escape(first['reference'])}</bdi></b>"
        f"<div class='siblings'>{''.join(map(_card, rows))}</div></div></section>\n"
    )


def _figure(source: str, lines: Iterable[str] = (), *, is_image: bool = False) -> str:
    pointed = "onmouseenter='this.controls=true' onmouseleave='this.controls=false'"
    caption = "<br>".join(map(html.escape, lines))
    seen = f"<video loop muted preload='metadata' {pointed} src='{source}'></video>"
    if is_image:
        seen = f"<img src='{source}'>"
    return f"<figure>{seen}<figcaption>{caption}</figcaption></figure>"


def group_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what siblings have in common, and no others; rows of older runs do not number their groups."""
    return row["step"], row["stage"], row["uid"], row.get("group")


def step_of(row: Mapping[str, Any]) -> str:
    """
    >>> step_of({"step": 40, "stage": "held_out/greedy"})
    '40, held_out/greedy'
    """
    return html.escape(f"{row['step']}, {row['stage']}")


def _card(row: Mapping[str, Any]) -> str:
    total = "unscored" if row["total"] is None else f"reward {row['total']:.2f}"
    advantage = row["advantage"]
    side = "" if not advantage else "up" if advantage > 0 else "down"
    gain = "" if advantage is None else f"advantage {advantage:+.2f}"
    parts = ", ".join(f"{name} {value:.2f}" for name, value in {**row["gates"], **row["terms"]}.items())
    return (
        f"<article class='{side}'><div class='earned'><b>{total}</b><span>{gain}</span></div>"
        f"{_written(row)}<div class='parts'>{html.escape(parts)}</div></article>"
    )


def _written(row: Mapping[str, Any]) -> str:
    """The reasoning, and the answer set off from it; as it stands where it has not that form."""
    tagged = read_tags(row["completion"])
    if tagged is None:
        parts = _text(row["completion"])
    else:
        parts = _text(tagged.thinking, "thinking") + _text(tagged.answer)
    return f"<div class='written'>{parts}</div>" + ("" if row["finished"] else "<b>(cut)</b>")


def _text(text: str, kind: str = "") -> str:
    """Line by line as it was written, and in its own direction: it must not turn round what stands beside it."""
    return f"<div class='text {kind}' dir='auto'>{html.escape(text)}</div>"


def _source(clip: Path, folder: Path) -> str:
    if clip.is_file() and clip.stat().st_size <= MAX_EMBEDDED_BYTES:
        kind = "image/png" if clip.suffix == ".png" else "video/mp4"
        return f"data:{kind};base64," + base64.b64encode(clip.read_bytes()).decode()
    return _link(clip, folder)


def _link(video: Path, folder: Path) -> str:
    return quote(os.fsencode(os.path.relpath(video, folder)))  # whatever bytes its name is made of
