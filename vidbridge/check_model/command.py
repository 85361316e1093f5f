"""``python -m vidbridge.check_model model=qwen2_5_vl_7b model.path=..``: is what vidbridge assumes true of this model?

Run it before a run, on the weights and the machine of the run and with its configuration, on one rank. A table says
what was looked at, whether it is ok and what to do; check_model.json in the folder of the run says the same. Nothing is
trained, and nothing is written beside the weights. Exit status: 0 nothing is wrong, 1 a row is not ok, 2 the
configuration is wrong.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidbridge.build import common
from vidbridge.build.common import as_config_errors
from vidbridge.check_model import cost, forward, inputs, positions, sight
from vidbridge.check_model.base import Item, Row, in_turn, read_items
from vidbridge.config.schema import Config
from vidbridge.errors import ConfigError, ModelUnfit
from vidbridge.memory_plan import plan
from vidbridge.memory_plan.memory import Memory, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.policy.model_folder import base_of
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.record.files import CHECK
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.runtime.random_state import seed_everything
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import SamplingParams

SPLIT = "train"  # whose rows are shown: those that the run would learn from
MAX_SAMPLED = 64  # tokens of a completion where its length does not matter
MARKS = {True: ("ok", "green"), False: ("NOT OK", "bold red"), None: ("skipped", "yellow")}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model and all that it is to be used with; what takes long is made when a row first needs it."""

    config: Config
    processor: Processor
    policy: Policy
    tasks: Mapping[str, TaskRows]

    @cached_property
    def items(self) -> list[Item]:
        """Two rows of each task."""
        return list(in_turn([islice(read_items(task), 2) for task in self.tasks.values()]))

    @cached_property
    def rollout(self) -> RolloutEngine:
        return self.config.rollout.build(self.policy)

    @property
    def sampling(self) -> SamplingParams:
        """Return how the run samples, but for the length."""
        tokens = min(self.config.rollout.max_completion_tokens, MAX_SAMPLED)
        return replace(self.config.rollout.sampling(), max_completion_tokens=tokens)

    @cached_property
    def reference(self) -> forward.Reference:
        return forward.reference_of(
            self.policy, forward.sample(self.policy, self.rollout, self.sampling, self.items[:2])
        )


# By the name of the row.
CHECKS: Mapping[str, Callable[[Subject], Row]] = {
    "chat template": lambda it: inputs.check_template(it.processor, it.items),
    "control tokens in texts": lambda it: inputs.check_control_tokens(it.processor, it.items[0]),
    "pixels": lambda it: inputs.check_pixels(it.processor, base_of(it.config.model.path)),
    "positions": lambda it: positions.check_positions(it.processor, it.items),
    "packed row = repeated rows": lambda it: forward.check_packed(it.policy, it.reference),
    "greedy rollout": lambda it: forward.check_greedy(
        it.policy, it.rollout, replace(it.sampling, greedy=True), it.items[:2], it.reference.band
    ),
    "sampler = learner": lambda it: forward.check_sampler(
        it.policy, it.reference.groups, it.reference.band
    ),
    "it sees": lambda it: sight.check_sight(it.policy, it.tasks),
    "right answers": lambda it: sight.check_answers(it.policy, it.tasks),
    "a training step": lambda it: check_step(it),
}


def check_step(it: Subject) -> Row:
    """Return the row about a training step on one rank that holds everything, with the longest prompt."""
    config, device = it.config, it.policy.module.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
    size = cost.StepSize(
        prompts_per_step=config.prompts_per_step,
        group_size=plan.siblings(config),
        completion_tokens=config.rollout.max_completion_tokens,
        max_packed_tokens=config.engine.max_packed_tokens,
    )
    memory = Memory(
        model=ModelSize.of(it.processor.config, config.model), sharding=Sharding(), on_gpu=device.type == "cuda"
    )
    offer = plan.offered(device, local_ranks=1)
    longest = max(it.items, key=lambda item: len(it.processor.encode(item.prompt).input_ids))
    return cost.check_step(
        it.policy, it.rollout, it.sampling, longest, size, memory, free=offer.device, spare=plan.SPARE[offer.kind]
    )


def build_subject(config: Config) -> Subject:
    """Return everything that is checked; ConfigError for what only a run with many ranks, or no model yet, could be."""
    if collectives.world_size() > 1:
        raise ConfigError(f"nproc={collectives.world_size()}: a model is checked on one rank, leave nproc out")
    if config.model.random_weights:
        raise ConfigError("a model is checked as it is saved: model.path=<folder or hub id>, such as <run>/model")
    seed_everything(config.seed)
    processor, dataset = common.build_processor(config), common.build_dataset(config)
    tasks = common.build_tasks(config, dataset, {SPLIT}, processor)[SPLIT]
    policy = Policy(
        common.build_module(config.model),
        processor,
        temperature=config.rollout.temperature,
        max_packed_tokens=config.engine.max_packed_tokens,
    )
    return Subject(config=config, processor=processor, policy=policy, tasks=tasks)


def rows_of(subject: Subject, announce: Callable[[str], object]) -> list[Row]:
    """Return all rows of the table; ``announce`` is told what is being looked at."""
    rows: list[Row] = []
    for number, (name, check) in enumerate(CHECKS.items(), start=1):
        announce(f"{number} of {len(CHECKS)}: {name} ..")
        try:
            rows.append(check(subject))
        except (ValueError, torch.OutOfMemoryError) as error:
            text = str(error).splitlines()[0]
            if rows and not rows[0].ok:  # without a template no prompt can be made
                rows.append(Row(name=name, ok=None, found=f"skipped: it needs the chat template ({text})"))
            else:
                rows.append(Row(name=name, ok=False, found=text, advice="mend what the message names"))
    return rows


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Return the table of rows; advice has a column of its own where there is some."""
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("what", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    advised = any(row.advice for row in rows)
    if advised:
        table.add_column("what to do", overflow="fold")
    for row in rows:
        cells = [Text(row.name), Text(*MARKS[row.ok]), Text(row.found)]
        table.add_row(*cells, *([Text(row.advice)] if advised else []))
    return table


def check_model(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
    """Print the table and write it; ModelUnfit when a row is not ok."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    with console.status("loading the model ..") as status:
        announce = status.update if console.is_terminal else console.print
        with as_config_errors():
            subject = build_subject(config)
        rows = rows_of(subject, announce)
    module = subject.policy.module
    about = {
        "model": config.model.path,
        "dtype": str(module.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(module.device) if module.device.type == "cuda" else "cpu",
        **{name: version(name) for name in ("torch", "transformers")},
    }
    console.print(table_of(rows, ", ".join(f"{value}" for value in about.values())))
    bad = [row.name for row in rows if row.ok is False]
    skipped = [row.name for row in rows if row.ok is None]
    record = {**about, "ok": not bad, "rows": [asdict(row) for row in rows]}
    (run_dir / CHECK).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = f"{len(rows) - len(bad) - len(skipped)} ok, {len(bad)} not ok, {len(skipped)} skipped"
    console.print(f"{counts}: {run_dir / CHECK}", soft_wrap=True, highlight=False, markup=False)
    if bad:
        raise ModelUnfit(f"not ok: {', '.join(bad)}")
