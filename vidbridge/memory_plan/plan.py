"""``python train.py .. plan=true``: what a run would hold and cost, and whether it fits here. No weight is loaded.

Some rows of each task are read and encoded, config.json is read, the rest is arithmetic. Of a released model that is
not here the numbers of its yaml are taken, and no network is asked. Nothing is trained and no folder claimed.
Exit status: 0 it fits the devices found, 1 it does not, 2 the configuration is wrong. With
model.device=cuda a run for GPUs can be planned where there are none; then it does not fit, but the tables say what it
needs.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Sequence

import numpy as np
import torch
from rich.console import Console

from vidbridge.build import common
from vidbridge.build.common import as_config_errors
from vidbridge.build.train import num_steps
from vidbridge.config.schema import Config, GrpoConfig, SftConfig
from vidbridge.data.dataset import Dataset
from vidbridge.data.loader import BadSamples, Loader
from vidbridge.memory_plan import stand_in
from vidbridge.memory_plan.memory import Groups, Memory, Moment, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.memory_plan.sizes import TaskSizes, look_at
from vidbridge.memory_plan.tables import cost_table, gb, memory_table, task_table
from vidbridge.policy.loading import resolve_device
from vidbridge.policy.processor import Processor
from vidbridge.shapes_world.create_model import create_folder, texts_of
from vidbridge.tasks.rows import TaskRows

NUM_SAMPLED = 8  # rows of each task
# What an allocator takes beside what is held, as a part of it: measured by experiments/bench/plan.py on a CPU, a guess
# on a GPU.
SPARE = {"cpu": 0.3, "cuda": 0.1}
STAGES = ("loading", "evaluation", "rollout", "learner", "update")
DIVIDE = "engine=zero3 with more ranks (nproc), engine=zero3_offload, model/adapter=lora, or model.frozen=[visual]"
# What is held, and the keys that make it less.
TURN = {
    "weights": "engine=zero3 with more ranks (nproc), or a smaller model",
    "whole weights": "fewer ranks on a machine, or a smaller model",
    "optimizer": DIVIDE,
    "gradients": DIVIDE,
    "gathered weights": "a smaller model",
    "replica": "rollout=vllm with rollout.tensor_parallel, engine=zero2, or a smaller model",
    "rollout engine": "rollout.sleep, rollout.tensor_parallel, rollout.cache_gb, or rollout=shared_prefix",
    "reference": "algo.kl_beta=0, or model/adapter=lora",
    "activations": "engine.max_packed_tokens, model.gradient_checkpointing=true, algo.group_size, frames.max_pixels",
    "logits": "a smaller model",
    "reading": "rollout.max_rows, frames.max_frames, frames.max_pixels",
    "KV cache": "rollout.max_rows, rollout.max_completion_tokens",
    "states": "rollout.max_rows",
    "drawing": "rollout.max_rows",
    "patches": "prompts_per_step, frames.max_frames, frames.max_pixels",
    "videos": "prompts_per_step, frames.max_frames",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The memory there is for one rank, in bytes."""

    kind: str  # cpu or cuda
    name: str
    device: float
    host: float


def show(config: Config, console: Console | None = None) -> bool:
    """Print the tables and the verdict: does it fit? Of many ranks that are asked, the first one answers."""
    if int(os.environ.get("RANK", "0")) > 0:
        return True
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    with as_config_errors():
        device = planned_device(config.model.device)
        dataset = common.build_dataset(config)
        processor, tasks = prepare(config, dataset, console)
        bad = BadSamples(max_frac=dataset.max_bad_frac)
        shares = task_shares(config)
        sizes = [
            look_at(task, Loader(tasks, processor, bad), num_rows=NUM_SAMPLED, share=shares[name])
            for name, task in tasks.items()
        ]
        config = replace(config, steps=num_steps(config, tasks))
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", config.nproc))
        config.rollout.check_model(processor.config, device=device, local_ranks=local_ranks)
        model = ModelSize.of(processor.config, config.model)
        memory = Memory(
            model=model,
            sharding=sharding_of(config),
            on_gpu=device.type == "cuda",
            has_reference=isinstance(config.algo, GrpoConfig) and config.algo.kl_beta > 0,
            engine=config.rollout.engine_memory(model.itemsize * model.weights),
        )
    moments = moments_of(config, memory, sizes)
    console.print(task_table(config, sizes, num_sampled=NUM_SAMPLED))
    console.print(cost_table(config, costs(config, memory, sizes)))
    console.print(memory_table(memory, moments))
    offer = offered(device, local_ranks=local_ranks)
    problems = [line for moment in moments for line in too_much(moment, offer)]
    most = max(moment.total for moment in moments) * (1 + SPARE[offer.kind])
    fits = f"fits: at most {gb(most)} GB a rank, {SPARE[offer.kind]:.0%} to spare, and {gb(offer.device)} GB are there"
    for line in problems or [f"{fits} ({offer.name})"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return not problems


def planned_device(name: str) -> torch.device:
    """ "cuda" and what "auto" finds mean a GPU for each rank; "cuda" may be planned for where there is none."""
    if name not in ("auto", "cuda"):
        return resolve_device(name)
    return torch.device("cuda" if name == "cuda" or torch.cuda.is_available() else "cpu")


def prepare(config: Config, dataset: Dataset, console: Console) -> tuple[Processor, dict[str, TaskRows]]:
    """Return what the run itself would encode with, or a stand-in for a released model, and its train rows."""
    spec = config.model
    if not spec.random_weights:
        is_released = "vocab_size" in spec.shape.text  # an embedded model's vocabulary is that of its data
        if is_released and not stand_in.is_at_hand(spec.path):
            processor = stand_in.processor_of(spec, config.frames.budget())
            tell = f"{spec.path} is not here: planned by the numbers of model.shape, text tokens estimated"
        else:
            processor = common.build_processor(config)  # quick to refuse, while the rows may have to be made
            tell = "; ".join(stand_in.differences(spec.shape, processor.config))
            tell = tell and f"{spec.path} is not model={spec.name}, and is planned by its own numbers: {tell}"
        if tell:
            console.print(tell, soft_wrap=True, highlight=False, markup=False)
        return processor, common.build_tasks(config, dataset, {"train"}, processor)["train"]
    tasks = common.build_tasks(config, dataset, {"train"}, None)["train"]
    with TemporaryDirectory() as folder:
        create_folder(Path(folder), texts_of(tasks), spec.shape, seed=config.seed)
        processor = common.build_processor(replace(config, model=replace(config.model, path=folder)))
    return processor, common.build_tasks(config, dataset, {"train"}, processor)["train"]  # that read frames in its size


def task_shares(config: Config) -> dict[str, float]:
    """The part of all samples that each task gives, whatever the stage of supervised fine-tuning; they add up to 1."""
    stages = [(1, config.task_mix.shares)]
    if isinstance(config.algo, SftConfig):
        stages = [(stage.steps, stage.shares) for stage in config.algo.stages]
    total = sum(steps for steps, _ in stages)
    return {
        task: sum(steps / total * shares.get(task, 0) / sum(shares.values()) for steps, shares in stages)
        for task in config.tasks
    }


def sharding_of(config: Config) -> Sharding:
    """Return what the engine divides, and among how many ranks: torchrun's, or those that we start."""
    return Sharding(
        stage=getattr(config.engine, "stage", 0),
        offload=getattr(config.engine, "offload", False),
        ranks=int(os.environ.get("WORLD_SIZE", config.nproc)),
    )


def siblings(config: Config) -> int:
    return config.algo.group_size if isinstance(config.algo, GrpoConfig) else 1


def moments_of(config: Config, memory: Memory, sizes: Sequence[TaskSizes]) -> list[Moment]:
    """The worst moment of each stage, with prompts as long as the longest that was looked at."""
    ranks, max_rows = memory.sharding.ranks, config.rollout.max_rows
    num_prompts, num_items = (math.ceil(number / ranks) for number in (config.prompts_per_step, config.eval.num_items))
    trained = [each for each in sizes if each.share > 0]
    # those of this step, and those of the next, which are read meanwhile
    videos = 2 * num_prompts * sum(each.share * float(np.mean(each.num_bytes)) for each in trained)

    def groups(number: int, width: int, tokens: int, of: Sequence[TaskSizes]) -> Groups:
        return Groups(
            number=number,
            siblings=width,
            prompt_tokens=max(max(each.prompt_tokens) for each in of),
            completion_tokens=tokens,
            patches=max(max(each.patches) for each in of),
        )

    limit, group_size = config.rollout.max_completion_tokens, siblings(config)
    moments = [memory.updating(host=videos)] + [memory.loading()] * (memory.sharding.stage == 3)
    for width in (1, config.eval.num_samples):  # greedy, and sampled
        together = groups(min(num_items, max(1, max_rows // width)), width, limit, sizes)
        moments.append(memory.sampling("evaluation", together, host=videos))
    if isinstance(config.algo, GrpoConfig):
        together = groups(min(num_prompts, max(1, max_rows // group_size)), group_size, limit, trained)
        moments.append(memory.sampling("rollout", together, host=videos))
    for tokens in (1, limit):  # where completions are short, a row has room for many videos
        step = groups(num_prompts, group_size, tokens, trained)
        row = step.in_one_row(config.engine.max_packed_tokens)
        moments.append(memory.learning(row, all_patches=num_prompts * step.patches, host=videos))
    worst = {moment.stage: moment for moment in sorted(moments, key=lambda moment: moment.total)}  # the last one stays
    return [worst[stage] for stage in STAGES if stage in worst]


def offered(device: torch.device, *, local_ranks: int) -> Offer:
    """Return what is free now for each rank of this machine: a GPU of its own, or a part of the memory."""
    host = available_ram() / local_ranks
    if device.type != "cuda":
        name = "the memory of this machine" + (f" for {local_ranks} ranks" if local_ranks > 1 else "")
        return Offer(kind="cpu", name=name, device=host, host=host)
    numbers = range(local_ranks) if device.index is None else [device.index]
    found = torch.cuda.device_count()
    if found <= max(numbers):
        return Offer(kind="cuda", name=f"{found} CUDA devices for {local_ranks} ranks", device=0.0, host=host)
    free = min(torch.cuda.mem_get_info(number)[0] for number in numbers)
    return Offer(kind="cuda", name=torch.cuda.get_device_name(numbers[0]), device=free, host=host)


def available_ram() -> float:
    """Return the bytes that Linux could give without swapping; elsewhere all there are."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def too_much(moment: Moment, offer: Offer) -> list[str]:
    """A line for each memory that is too small at this moment, with what fills it and which key to turn."""
    lines = []
    numbers = [(moment.device, offer.device, offer.name, SPARE[offer.kind])]
    numbers += [(moment.host, offer.host, "the memory of the CPU", SPARE["cpu"])]
    for held, there, name, spare in numbers:
        needed = sum(held.values()) * (1 + spare)
        if needed > there:
            largest = max(held, key=lambda part: held[part])
            lines.append(
                f"does not fit: {moment.stage} needs {gb(needed)} GB a rank, {spare:.0%} to spare, and there are "
                f"{gb(there)} GB ({name}). Most of it is {largest}, {gb(held[largest])} GB: turn {TURN[largest]}"
            )
    return lines


def costs(config: Config, memory: Memory, sizes: Sequence[TaskSizes]) -> dict[str, float]:
    """Return what one step costs if every completion is as long as it may be, all ranks together.

    A weight costs 2 operations a token, 2 more if a gradient goes through it and again 2 if it is trained itself; 2
    more if the backward pass computes the forward pass again. What attention does beside its weights is left out.
    """
    model, text = memory.model, memory.model.active_in_text
    num_prompts, limit = config.prompts_per_step, config.rollout.max_completion_tokens
    completions = num_prompts * siblings(config)
    prompt_tokens, patches = (
        num_prompts * sum(each.share * float(np.mean(getattr(each, name))) for each in sizes)
        for name in ("prompt_tokens", "patches")
    )
    learner_tokens = prompt_tokens + completions * (limit - 1)
    logits = 4 if model.has_adapters else 6
    backward = logits + 2 * model.checkpointing
    learner = backward * text * learner_tokens + logits * model.in_vocabulary * completions * limit
    learner += (backward if model.trains_vision else 2) * model.in_vision_blocks * patches
    found = {
        "prompts": num_prompts,
        "completions": completions,
        "learner tokens": learner_tokens,
        "learner, TFLOP": learner / 1e12,
    }
    if not isinstance(config.algo, GrpoConfig):
        return found
    tokens = prompt_tokens + completions * limit
    rollout = 2 * (text * tokens + model.in_vocabulary * completions * limit + model.in_vision_blocks * patches)
    turns = math.ceil(
        math.ceil(num_prompts / memory.sharding.ranks) / max(1, config.rollout.max_rows // config.algo.group_size)
    )
    own = 1.0 if memory.engine is None else memory.engine.weights / (model.itemsize * model.weights)
    read = turns * limit * model.itemsize * (text + model.in_vocabulary) * own  # by this rank
    return found | {
        "rollout tokens": tokens,
        "rollout, TFLOP": rollout / 1e12,
        "weights a rank reads while decoding, TB": read / 1e12,
    }
