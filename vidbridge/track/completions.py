"""What the policy wrote, one row a completion: the question, the text, and why it earned what it did."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from vidbridge.text.prompts import option_lines
from vidbridge.types import Group, Montage, VideoRef

COLUMNS: tuple[str, ...] = ("step", "stage", "uid", "task", "question", "reference", "video", "completion", "finished")
COLUMNS += ("total", "advantage", "gates", "terms")


def completion_rows(
    step: int, groups: Iterable[Group], *, stage: str = "training", advantages: Sequence[Sequence[float]] = ()
) -> list[dict[str, Any]]:
    """Rows with the keys of COLUMNS. What could not be scored has total None, and no parts in a whole group.

    ``stage`` says where in the run they were written: training, held_out/greedy, ..; ``advantages`` are there only
    where they were learnt from, otherwise None.
    """
    rows = []
    for number, group in enumerate(groups):
        for place, completion in enumerate(group.completions):
            reward = group.rewards[place] if group.rewards else None
            rows.append(
                {
                    "step": step,
                    "stage": stage,
                    "uid": group.sample.uid,
                    "task": group.sample.task,
                    "question": "\n".join([group.sample.question, option_lines(group.sample.options)]).strip(),
                    "reference": group.sample.answer,
                    "video": path_of(group.sample.videos[0]),
                    "completion": completion.text,
                    "finished": completion.finished,
                    "total": reward.total if reward and reward.scored else None,
                    "advantage": advantages[number][place] if advantages else None,
                    "gates": dict(reward.gates) if reward else {},
                    "terms": {name: value for name, value in reward.terms.items() if value == value} if reward else {},
                }
            )
    return rows


def path_of(video: VideoRef | Montage) -> str:
    return video.parts[0].path if isinstance(video, Montage) else video.path
