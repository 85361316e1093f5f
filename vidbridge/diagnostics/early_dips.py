"""A task that falls before it rises: what mixing does to it early, which the scores at the end do not show."""

from __future__ import annotations

import math
from typing import Any

from vidbridge.record.metrics_file import series

VAL = "val/sampled/"
NOISE = 0.05  # of the maximum: less is within what a look at 16 items can miss by


def early_dips(lines: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Tasks whose score on val fell below the first look, by more than NOISE, in the first half of the run.

    ``{"qa": {"depth": 0.12, "step": 20, "back_at": 60}}``: lowest at step 20; None where it never came back.
    """
    tasks = sorted({key.removeprefix(VAL) for line in lines for key in line if key.startswith(VAL)} - {"mean"})
    last = max((line["step"] for line in lines), default=0)
    found: dict[str, dict[str, float | None]] = {}
    for task in tasks:
        steps, scores = series(lines, VAL + task)
        early = [(score, step) for step, score in zip(steps, scores) if step <= last / 2]
        lowest, lowest_at = min(early, default=(math.inf, 0))
        if scores and scores[0] - lowest > NOISE:
            back = [step for step, score in zip(steps, scores) if step > lowest_at and score >= scores[0]]
            depth = round(scores[0] - lowest, 4)
            found[task] = {"depth": depth, "step": lowest_at, "back_at": back[0] if back else None}
    return found
