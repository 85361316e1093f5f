"""What the policy wrote, one row a completion: the question, the text, and why it earned what it did."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from vidbridge.record.clips import SeenClip
from vidbridge.text.prompts import option_lines
from vidbridge.types import Group

COLUMNS = (
    *("step", "stage", "uid", "task", "question", "reference"),
    *("completion", "finished", "total", "advantage", "gates", "terms"),
)


def completion_rows(
    step: int,
    groups: Iterable[Group],
    clips: Sequence[Sequence[SeenClip]],
    *,
    stage: str = "training",
    advantages: Sequence[Sequence[float]] = (),
) -> list[dict[str, Any]]:
    """Rows with the keys of COLUMNS, "clips" and "group", the number of the group in its table.

    What could not be scored has total None, and no parts in a whole group.
    ``clips``: of each group's prompt. ``stage`` says where in the run they were written: training, held_out/greedy, ..;
    ``advantages`` are there only where they were learnt from, otherwise None.
    """
    rows = []
    for number, group in enumerate(groups):
        for index, completion in enumerate(group.completions):
            reward = group.rewards[index]
            rows.append(
                {
                    "step": step,
                    "stage": stage,
                    "uid": group.sample.uid,
                    "task": group.sample.task,
                    "question": "\n".join([group.sample.question, option_lines(group.sample.options)]).strip(),
                    "reference": group.sample.answer,
                    "completion": completion.text,
                    "finished": completion.finished,
                    "total": reward.total if reward.scored else None,
                    "advantage": advantages[number][index] if advantages else None,
                    "gates": dict(reward.gates),
                    "terms": {name: value for name, value in reward.terms.items() if value == value},
                    "group": number,  # the same item may come twice in a step
                    "clips": [clip.to_dict() for clip in clips[number]],
                }
            )
    return rows
