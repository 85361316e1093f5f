"""``python train.py .. plan=true``: what a run will hold, read and write, before it starts. No weight is loaded.

Exit status: 0 it fits the devices found here, 1 it does not, 2 the configuration is wrong.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Mapping, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vidbridge import build
from vidbridge.config import Config, GrpoConfig, SftConfig
from vidbridge.memory import Groups, Memory, ModelSize, Moment, Sharding
from vidbridge.policy.loading import resolve_device
from vidbridge.policy.processor import Processor
from vidbridge.tasks.base import Task, as_data_errors
from vidbridge.tiny import create_folder, texts_of

GB = 1e9
SPARE = 0.1  # of what is held: what allocators and libraries take, and the arithmetic leaves out
NUM_SAMPLED = 8  # rows of each task
STAGES = ("evaluation", "rollout", "learner", "update")
# What is held, and where to turn if there is too much of it.
TURN = {
    "weights": "engine=zero3 with more ranks (nproc), or a smaller model",
    "gathered weights": "a smaller model",
    "replica": "a smaller model",
    "reference": "algo.kl_beta=0",
    "optimizer": "engine=zero3 with more ranks (nproc), engine=zero3_offload, or model.frozen=[visual]",
    "gradients": "engine=zero3 with more ranks (nproc), engine=zero3_offload, or model.frozen=[visual]",
    "activations": "engine.max_packed_tokens, model.gradient_checkpointing=true, frames.max_pixels, algo.group_size",
    "logits": "model.frozen=[lm_head], or a smaller model",
    "reading": "rollout.max_rows, frames.max_frames, frames.max_pixels",
    "KV cache": "rollout.max_rows, rollout.max_completion_tokens",
    "drawing": "rollout.max_rows",
    "patches": "prompts_per_step, frames.max_frames, frames.max_pixels",
    "videos": "prompts_per_step, frames.max_frames",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSizes:
    """Of the rows of a task that were looked at."""

    name: str
    num_rows: int
    share: float  # of the samples that are trained on
    prompt_tokens: Sequence[int]
    video_tokens: Sequence[int]
    patches: Sequence[int]
    num_bytes: Sequence[int]  # of frames and patches


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The memory there is for one rank, in bytes."""

    device_name: str
    device: float  # 0: there is none
    host: float


def show(config: Config, console: Console | None = None) -> bool:
    """Print the tables and the verdict: does it fit? Of many ranks that are asked, the first one answers."""
    if int(os.environ.get("RANK", "0")) > 0:
        return True
    console = console or Console()
    with build.as_config_errors():
        device = planned_device(config.model.device)
        processor, tasks = prepare(config)
        sizes = [look_at(config, task, processor) for task in tasks.values()]
        config = replace(config, steps=build.num_steps(config, tasks))
        model = ModelSize.of(processor.config, config.model)
    memory = Memory(
        model=model,
        sharding=sharding_of(config),
        on_gpu=device.type == "cuda",
        has_reference=isinstance(config.algo, GrpoConfig) and config.algo.kl_beta > 0,
    )
    moments = moments_of(config, memory, sizes)
    offer = offered(device, local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", config.nproc)))
    for table in (task_table(config, sizes), cost_table(config, memory, sizes), memory_table(memory, moments)):
        console.print(table)
    problems = [line for moment in moments for line in too_much(moment, offer)]
    worst = max(moments, key=lambda moment: moment.total)
    fits = f"fits: a rank needs at most {gb(worst.total)} GB ({worst.stage}) of {gb(offer.device)} GB, {offer.device_name}"
    for line in problems or [fits]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return not problems


def planned_device(name: str) -> torch.device:
    """A GPU may be planned for where there is none: only what is in it cannot be compared."""
    return torch.device(name) if name.startswith("cuda") else resolve_device(name)


def prepare(config: Config) -> tuple[Processor, dict[str, Task]]:
    """What the run itself would read and encode with, and its train rows."""
    if not config.model.random_weights:
        processor = build.build_processor(config)  # quick to refuse; the rows may have to be made
        return processor, build.build_tasks(config, {"train"})["train"]
    tasks = build.build_tasks(config, {"train"})["train"]
    with TemporaryDirectory() as folder:
        create_folder(Path(folder), texts_of(tasks), seed=config.seed)
        return build.build_processor(replace(config, model=replace(config.model, path=folder))), tasks


def look_at(config: Config, task: Task, processor: Processor) -> TaskSizes:
    """Some rows, read and encoded as in training; a prompt that is too long is a DataError here too."""
    prompts = []
    for index in np.unique(np.linspace(0, len(task) - 1, NUM_SAMPLED).astype(int)).tolist():
        sample = task.sample(index)
        with as_data_errors(sample):
            prompt = task.prompt(sample)
            prompts.append((prompt, processor.encode(prompt)))
    video = processor.config.video_token_id
    return TaskSizes(
        name=task.name,
        num_rows=len(task),
        share=task_shares(config).get(task.name, 0.0),
        prompt_tokens=[len(encoded.input_ids) for _, encoded in prompts],
        video_tokens=[int((encoded.input_ids == video).sum()) for _, encoded in prompts],
        patches=[len(encoded.pixel_values) for _, encoded in prompts],
        num_bytes=[
            encoded.pixel_values.nbytes + sum(clip.frames.nbytes for clip in prompt.clips)
            for prompt, encoded in prompts
        ],
    )


def task_shares(config: Config) -> dict[str, float]:
    """Part of all samples that each task gives, over all stages of supervised fine-tuning; they add up to 1."""
    stages = [(1, config.task_mix.shares)]
    if isinstance(config.algo, SftConfig):
        stages = [(stage.steps, stage.shares) for stage in config.algo.stages]
    total = sum(steps for steps, _ in stages)
    return {
        task: sum(steps / total * shares.get(task, 0) / sum(shares.values()) for steps, shares in stages)
        for task in config.tasks
    }


def sharding_of(config: Config) -> Sharding:
    """What the engine divides, and among how many ranks: those of torchrun, or ours."""
    return Sharding(
        stage=getattr(config.engine, "stage", 0),
        offload=getattr(config.engine, "offload", False),
        ranks=int(os.environ.get("WORLD_SIZE", config.nproc)),
    )


def moments_of(config: Config, memory: Memory, sizes: Sequence[TaskSizes]) -> list[Moment]:
    """The worst moments of each stage of a step, with prompts as long as the longest that was looked at."""
    ranks, limit = memory.sharding.ranks, config.rollout.max_completion_tokens
    group_size, num_prompts = siblings(config), math.ceil(config.prompts_per_step / ranks)
    trained = [each for each in sizes if each.share > 0]
    # what is trained on now, and the next step's, which is read meanwhile
    videos = 2 * num_prompts * sum(each.share * float(np.mean(each.num_bytes)) for each in trained)

    def groups(number: int, width: int, tokens: int, of: Sequence[TaskSizes]) -> Groups:
        longest, patches = (max(max(getattr(each, name)) for each in of) for name in ("prompt_tokens", "patches"))
        return Groups(
            number=number, siblings=width, prompt_tokens=longest, completion_tokens=tokens, patches=patches
        )

    def together(width: int, num_prompts: int) -> int:
        return min(num_prompts, max(1, config.rollout.max_rows // width))

    num_items = math.ceil(config.eval.num_items / ranks)
    moments = [
        memory.sampling("evaluation", groups(together(width, num_items), width, limit, sizes), host=videos)
        for width in (1, config.eval.num_samples)  # greedy, and sampled
    ]
    if isinstance(config.algo, GrpoConfig):
        sampled = groups(together(group_size, num_prompts), group_size, limit, trained)
        moments.append(memory.sampling("rollout", sampled, host=videos))
    for tokens in (1, limit):  # short completions: a row has room for many videos
        row = groups(num_prompts, group_size, tokens, trained).in_one_row(config.engine.max_packed_tokens)
        moments.append(memory.learning(row, all_patches=num_prompts * row.patches, host=videos))
    moments.append(memory.updating(host=videos))
    moments.sort(key=lambda moment: moment.total)  # of each stage the worst stays, the last one here
    stages = {moment.stage: moment for moment in moments}
    return [stages[stage] for stage in STAGES if stage in stages]


def siblings(config: Config) -> int:
    return config.algo.group_size if isinstance(config.algo, GrpoConfig) else 1


def offered(device: torch.device, *, local_ranks: int) -> Offer:
    """What is free now, divided among the ranks of this machine: each has a GPU of its own, or its part of the RAM."""
    host = available_ram() / local_ranks
    if device.type != "cuda":
        return Offer(device_name=f"memory of this machine for each of {local_ranks} ranks", device=host, host=host)
    places = [device.index] if device.index is not None else range(local_ranks)
    if torch.cuda.device_count() <= max(places):
        name = f"{torch.cuda.device_count()} CUDA devices here for {local_ranks} ranks"
        return Offer(device_name=name, device=0.0, host=host)
    free = min(torch.cuda.mem_get_info(place)[0] for place in places)
    return Offer(device_name=f"free on {torch.cuda.get_device_name(places[0])}", device=free, host=host)


def available_ram() -> float:
    """In bytes: what Linux says could be had without swapping; elsewhere all there is."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def too_much(moment: Moment, offer: Offer) -> list[str]:
    """A line for each memory that is too small at this moment, with what fills it and which key to turn."""
    lines = []
    places = ((moment.device, offer.device, offer.device_name), (moment.host, offer.host, "memory of the CPU"))
    for held, there, name in places:
        total = sum(held.values()) * (1 + SPARE)
        if total > there:
            largest = max(held, key=lambda part: held[part])
            lines.append(
                f"does not fit: {moment.stage} needs {gb(total)} GB a rank with a tenth to spare, and there are "
                f"{gb(there)} GB ({name}). Most of it is {largest}, {gb(held[largest])} GB: turn {TURN[largest]}"
            )
    return lines


def gb(num_bytes: float) -> str:
    """
    >>> gb(16_580_000_000)
    '16.58'
    """
    return f"{num_bytes / GB:.2f}"


def task_table(config: Config, sizes: Sequence[TaskSizes]) -> Table:
    assert config.steps is not None
    num_samples = config.steps * config.prompts_per_step
    table = Table(title=f"tasks: prompts of {NUM_SAMPLED} rows each, min / median / max; "
                        f"completions of up to {config.rollout.max_completion_tokens} tokens")
    for column in ("task", "rows", "share", "samples", "prompt tokens", "video tokens"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for each in sizes:
        spread = (f"{min(tokens)} / {np.median(tokens):.0f} / {max(tokens)}"
                  for tokens in (each.prompt_tokens, each.video_tokens))
        table.add_row(each.name, f"{each.num_rows}", f"{each.share:.1%}", f"{num_samples * each.share:.0f}", *spread)
    return table


def memory_table(memory: Memory, moments: Sequence[Moment]) -> Table:
    """GB of each part in each stage; those in the memory of the CPU below."""
    sharding = memory.sharding
    table = Table(title=f"memory of one of {sharding.ranks} ranks at the worst moment of a stage, GB")
    table.add_column("held", no_wrap=True)
    for moment in moments:
        table.add_column(moment.stage, justify="right", no_wrap=True)
    for title, sides in (("in all", [moment.device for moment in moments]), ("CPU", [moment.host for moment in moments])):
        for part in dict.fromkeys(part for side in sides for part in side):
            table.add_row(part, *(gb(side[part]) if side.get(part) else "-" for side in sides))
        if any(sides):
            table.add_row(title, *(gb(sum(side.values())) for side in sides), style="bold", end_section=True)
    return table


def cost_table(config: Config, memory: Memory, sizes: Sequence[TaskSizes]) -> Table:
    """Of all ranks together, if every completion is as long as it may be."""
    assert config.steps is not None
    table = Table(title="cost at most, all ranks together; arithmetic: products with weights alone")
    for column in ("what", "a step", f"{config.steps} steps"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for what, cost in costs(config, memory, sizes).items():
        form = ",.0f" if cost >= 100 else ".3g"
        table.add_row(what, format(cost, form), format(cost * config.steps, form))
    return table


def costs(config: Config, memory: Memory, sizes: Sequence[TaskSizes]) -> dict[str, float]:
    """Of one step. A weight costs 2 operations a token, 6 with the backward pass, 8 if it computes forward again."""
    model, text = memory.model, memory.model.in_text_layers
    prompts, limit = config.prompts_per_step, config.rollout.max_completion_tokens
    completions = prompts * siblings(config)
    prompt_tokens, patches = (
        prompts * sum(each.share * float(np.mean(getattr(each, name))) for each in sizes)
        for name in ("prompt_tokens", "patches")
    )
    learner_tokens = prompt_tokens + completions * (limit - 1)
    backward = 8 if model.checkpointing else 6
    found = {
        "prompts": prompts,
        "completions": completions,
        "learner tokens": learner_tokens,
        "learner, PFLOP": backward * text * learner_tokens
        + 6 * model.in_vocabulary * completions * limit
        + (backward if model.trains_vision else 2) * model.in_vision_blocks * patches,
    }
    if isinstance(config.algo, GrpoConfig):
        of_rank = math.ceil(prompts / memory.sharding.ranks)
        turns = math.ceil(of_rank / max(1, config.rollout.max_rows // config.algo.group_size))
        found |= {
            "rollout tokens": prompt_tokens + completions * limit,
            "rollout, PFLOP": 2 * text * (prompt_tokens + completions * limit)
            + 2 * model.in_vocabulary * completions * limit
            + 2 * model.in_vision_blocks * patches,
            "weights read by a rank while it decodes, TB": turns * limit * model.itemsize * (text + model.in_vocabulary),
        }
    scale = {"learner, PFLOP": 1e15, "rollout, PFLOP": 1e15, "weights read by a rank while it decodes, TB": 1e12}
    return {what: cost / scale.get(what, 1) for what, cost in found.items()}
