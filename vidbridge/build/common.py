"""From the typed configuration to one object each: what build.py puts together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from torch import nn
from transformers.utils.logging import disable_progress_bar

from vidbridge.runtime import collectives
from vidbridge.errors import ConfigError
from vidbridge.config.checks import reward_weights
from vidbridge.config.choices import Prompting
from vidbridge.config.schema import Config, GrpoConfig, SftConfig
from vidbridge.data.dataset import Dataset
from vidbridge.data.loader import BadSamples
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics.gradients import Diagnostics
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.engines.base import Engine
from vidbridge.policy.loading import DTYPES, load_model
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy, frozen_copy
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.base import RolloutEngine
from vidbridge.sft_step import SftStep
from vidbridge.step import GrpoStep
from vidbridge.config.instantiate import make
from vidbridge.tasks.base import Row, Task
from vidbridge.record.console import Console
from vidbridge.types import StepResult


def build_dataset(config: Config) -> Dataset:
    where = "data" if config.data is not config.benchmark.data else "benchmark.data"
    return make(config, where, config.data)


def build_tasks(
    config: Config,
    dataset: Dataset,
    splits: set[str],
    processor: Processor | None,
    prompting: Prompting = Prompting.thinking,
) -> dict[str, dict[str, Task]]:
    """Every task with its rows, by split. Rows that do not exist yet are made now, before the bar starts."""

    def rows(task: Task, split: str) -> Sequence[Row]:
        found = dataset.rows(task, split)
        if split != "train" or config.train_rows is None:
            return found
        return [found[index] for index in range(min(config.train_rows, len(found)))]

    tasks = build_plain_tasks(config, dataset, processor, prompting)
    return {
        split: {name: replace(task, rows=rows(task, split)) for name, task in tasks.items()}
        for split in sorted(splits)
    }


def build_plain_tasks(
    config: Config, dataset: Dataset, processor: Processor | None, prompting: Prompting
) -> dict[str, Task]:
    """Those of the configuration, without rows; without a processor frames keep their size."""
    frames = processor.frames if processor else FrameBudget(**vars(config.frames))
    tasks = {name: make(config, f"tasks.{name}", node) for name, node in config.tasks.items()}
    for name, task in tasks.items():
        if task.name != name:
            raise ConfigError(f"tasks.{name} builds the task '{task.name}': call the key and the task the same")
    return {
        name: replace(
            task, template=config.prompt.template(name, prompting), frames=frames, read=dataset.reader
        )
        for name, task in tasks.items()
    }


def build_processor(config: Config) -> Processor:
    if not Path(config.model.path).exists():
        Console().say(f"no folder {config.model.path} here: asking the Hugging Face hub ..")
    frames = FrameBudget(**vars(config.frames))
    return Processor.from_folder(config.model.path, frames, config.model.max_prompt_tokens).sized()


def build_judge(config: Config) -> Judge:
    return make(config, "judge", config.judge)


def build_reward(config: Config, where: str, judge: Judge) -> GatedSum:
    """The reward at ``where`` ("reward" or "eval.reward"); those with a parameter ``judge`` share this one."""
    node = config.reward if where == "reward" else config.eval.reward

    def build_all(part: str) -> dict[str, Any]:
        present = {name: spec for name, spec in node[part].items() if spec is not None}  # null takes one out
        return {name: make(config, f"{where}.{part}.{name}", spec, judge=judge) for name, spec in present.items()}

    return GatedSum(gates=build_all("gates"), terms=build_all("terms"), weights=reward_weights(node), judge=judge)


def build_eval_reward(config: Config, judge: Judge) -> GatedSum:
    reward = build_reward(config, "eval.reward", judge)
    for task in config.tasks:
        if reward.maximum(task) <= 0:
            raise ConfigError(f"eval.reward.{task} pays for nothing: scores are parts of the most that can be earned")
    return reward


def build_policy(config: Config, processor: Processor, *, trains: bool) -> QwenVLPolicy:
    """With what training needs besides the model, or without."""
    spec, algo = config.model, config.algo
    disable_progress_bar()  # there is one bar, and it is ours
    module = load_model(
        spec.path,
        dtype=spec.dtype.value,
        attn_implementation=spec.attn_implementation.value,
        frozen=spec.frozen,
        gradient_checkpointing=spec.gradient_checkpointing,
        device=spec.device,
    )
    has_reference = trains and isinstance(algo, GrpoConfig) and algo.kl_beta > 0
    reference = frozen_copy(module) if has_reference else None  # before an engine divides the weights
    return QwenVLPolicy(
        module,
        processor,
        build_engine(config, module) if trains else None,
        temperature=config.rollout.temperature,
        max_packed_tokens=config.engine.max_packed_tokens,
        reference=reference,
        saved_dtype=DTYPES[spec.saved_dtype.value] if spec.saved_dtype else None,
    )


def build_engine(config: Config, module: nn.Module) -> Engine:
    assert config.steps is not None
    updates = config.steps * (config.algo.ppo_epochs if isinstance(config.algo, GrpoConfig) else 1)
    optim = {**vars(config.optim), "schedule": config.optim.schedule.value}
    node = {name: value for name, value in vars(config.engine).items() if value is not None}
    del node["max_packed_tokens"]  # the policy's
    return make(config, "engine", node, module=module, total_updates=updates, **optim)


def build_rollout(config: Config, policy: QwenVLPolicy, **changes: float) -> RolloutEngine:
    return make(config, "rollout", {**vars(config.rollout), **changes}, policy=policy)


def build_step(
    config: Config,
    tasks: Mapping[str, Task],
    processor: Processor,
    reward: GatedSum,
    policy: QwenVLPolicy,
    bad: BadSamples,
    *,
    total: int,
) -> Callable[[int], StepResult]:
    """The function of a step number that the trainer loops over; ``total`` rows make a pass of the task mix."""
    assert config.steps is not None
    if config.prompts_per_step < collectives.world_size():
        raise ConfigError(
            f"prompts_per_step={config.prompts_per_step} leaves some of the {collectives.world_size()} ranks without a prompt"
        )
    if isinstance(config.algo, SftConfig):
        return SftStep(
            config.algo.stages,
            tasks=tasks,
            processor=processor,
            policy=policy,
            prompts_per_step=config.prompts_per_step,
            seed=config.seed,
            last=config.steps - 1,
            bad=bad,
        )
    assert isinstance(config.algo, GrpoConfig)
    return GrpoStep(
        mixture=Mixture(
            tasks, config.task_mix.shares, prompts_per_step=config.prompts_per_step, seed=config.seed, total=total
        ),
        processor=processor,
        rollout=build_rollout(config, policy),
        reward=reward,
        policy=policy,
        algo=config.algo,
        max_completion_tokens=config.rollout.max_completion_tokens,
        last=config.steps - 1,
        bad=bad,
        diagnostics=Diagnostics(module=policy.module, processor=processor, every=config.diagnostics_every)
        if config.diagnostics_every
        else None,
    )


def build_evaluator(
    config: Config,
    tasks: Mapping[str, Mapping[str, Task]],
    processor: Processor,
    reward: GatedSum,
    policy: QwenVLPolicy,
    bad: BadSamples,
    prompting: Prompting = Prompting.thinking,
) -> Evaluator:
    """``prompting`` is the variant that ``tasks`` were built with."""
    return Evaluator(
        tasks=tasks,
        policy=policy,
        processor=processor,
        # whatever training samples with, so that scores of different runs compare
        rollout=build_rollout(config, policy, temperature=1.0, top_p=1.0, min_p=0.0),
        reward=reward,
        max_rows=config.rollout.max_rows,
        seed=config.seed,
        bad=bad,
        direct=prompting is Prompting.direct,
    )
