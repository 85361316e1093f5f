"""completions.html: what the policy wrote, as a page to look at, made from completions.jsonl alone."""

from __future__ import annotations

import base64
import html
import os
from itertools import groupby
from pathlib import Path
from typing import Any, Mapping, Sequence

MAX_EMBEDDED_BYTES = 200_000  # larger clips are linked, so that the page stays light

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; color: #222; }
section { display: grid; grid-template-columns: 200px 1fr; gap: 1.2em; border-top: 1px solid #ccc; padding: 1.2em 0; }
video { width: 200px; image-rendering: pixelated; background: #eee; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25em .7em .25em 0; border-bottom: 1px solid #eee; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.parts { color: #777; font-size: 13px; }
"""


def write_page(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One section a group: the playable clip, the question, and each completion with its reward and parts.

    ``rows`` are those of track/completions.py, siblings next to each other.
    """
    sections = [
        _section(step, list(group), path.parent) for (step, _), group in groupby(rows, lambda r: (r["step"], r["uid"]))
    ]
    path.write_text(
        f"<!doctype html>\n<meta charset='utf-8'>\n<title>completions</title>\n<style>{_STYLE}</style>\n"
        f"<h1>Completions</h1>\n{''.join(sections)}",
        encoding="utf-8",
    )


def _section(step: int, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    first = rows[0]
    lines = "".join(_line(row) for row in rows)
    question = html.escape(first["question"]).replace("\n", "<br>")  # the options stand on lines of their own
    return (
        f"<section><video controls loop muted src='{_source(Path(first['video']), folder)}'></video><div>"
        f"<h3>step {step}, {html.escape(first['uid'])}</h3>"
        f"<p>{question}<br>reference: <b>{html.escape(first['reference'])}</b></p>"
        f"<table><tr><th>reward</th><th>completion</th></tr>{lines}</table></div></section>\n"
    )


def _line(row: Mapping[str, Any]) -> str:
    total = "unscored" if row["total"] is None else f"{row['total']:.2f}"
    parts = ", ".join(f"{name} {value:.2f}" for name, value in {**row["gates"], **row["terms"]}.items())
    cut = "" if row["finished"] else " <b>(cut)</b>"
    text = html.escape(row["completion"]) + cut
    return f"<tr><td class='number'>{total}</td><td>{text}<div class='parts'>{html.escape(parts)}</div></td></tr>"


def _source(video: Path, folder: Path) -> str:
    if video.is_file() and video.stat().st_size <= MAX_EMBEDDED_BYTES:
        return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    return html.escape(os.path.relpath(video, folder), quote=True)
