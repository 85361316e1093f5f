"""The tables that plan=true prints; what is in them comes from plan.py."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from rich.table import Table

from vidbridge.config.schema import Config
from vidbridge.memory_plan.memory import Memory, Moment
from vidbridge.memory_plan.sizes import TaskSizes


def gb(num_bytes: float) -> str:
    """
    >>> gb(16_580_000_000)
    '16.58'
    """
    return f"{num_bytes / 1e9:.2f}"


def amount(number: float) -> str:
    """
    >>> amount(1435234.0), amount(12), amount(0.03951)
    ('1,435,234', '12', '0.0395')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def new_table(title: str, *columns: str) -> Table:
    """All columns but the first hold numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def task_table(config: Config, sizes: Sequence[TaskSizes], *, num_sampled: int) -> Table:
    assert config.steps is not None
    table = new_table(
        f"tasks; tokens of up to {num_sampled} rows: min / median / max",
        *("task", "rows", "share", "samples", "prompt tokens", "of them video"),
    )
    for each in sizes:
        spreads = (
            f"{min(tokens)} / {np.median(tokens):.0f} / {max(tokens)}"
            for tokens in (each.prompt_tokens, each.video_tokens)
        )
        samples = each.share * config.steps * config.prompts_per_step
        table.add_row(each.name, amount(each.num_rows), f"{each.share:.1%}", amount(samples), *spreads)
    return table


def cost_table(config: Config, of_a_step: dict[str, float]) -> Table:
    assert config.steps is not None
    table = new_table(
        f"cost at most, with completions of {config.rollout.max_completion_tokens} tokens, all ranks together",
        *("what", "a step", f"{amount(config.steps)} steps"),
    )
    for what, cost in of_a_step.items():
        table.add_row(what, amount(cost), amount(cost * config.steps))
    return table


def memory_table(memory: Memory, moments: Sequence[Moment]) -> Table:
    """A column a stage; what lies in the memory of the CPU beside a GPU comes last."""
    table = new_table(
        f"GB that a rank of {memory.sharding.ranks} holds at the worst moment of each stage",
        *("held", *(moment.stage for moment in moments)),
    )
    sides_of = {"in all": [moment.device for moment in moments], "on the CPU": [moment.host for moment in moments]}
    for total, sides in sides_of.items():
        if any(sides):
            for part in dict.fromkeys(part for side in sides for part in side if side[part]):
                table.add_row(part, *(gb(side[part]) if side.get(part) else "-" for side in sides))
            table.add_row(total, *(gb(sum(side.values())) for side in sides), style="bold", end_section=True)
    return table
