"""From the typed configuration to objects, one function each. Nothing else calls Hydra's instantiate."""

from __future__ import annotations

import inspect
import random
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from transformers.utils.logging import disable_progress_bar

from vidbridge.config import Config, ConfigError, GrpoConfig, SftConfig, WandbMode, reward_weights
from vidbridge.data.mixture import Mixture
from vidbridge.data.rows import DataError
from vidbridge.evaluate import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.media.decode import VideoError
from vidbridge.media.frames import FrameBudget
from vidbridge.policy.loading import DTYPES, load_model
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy, frozen_copy
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.base import RolloutEngine
from vidbridge.scoring import self_test
from vidbridge.sft import SftStep
from vidbridge.step import GrpoStep
from vidbridge.targets import check_arguments, check_targets
from vidbridge.tasks.base import Task
from vidbridge.tiny import create_folder, texts_of
from vidbridge.track.console import Console
from vidbridge.track.tracker import METRICS, Tracker
from vidbridge.track.wandb_sink import WandbSink, mode_by_key
from vidbridge.trainer import Trainer
from vidbridge.types import StepResult


def build_trainer(config: Config, *, public: Mapping[str, Any], run_dir: Path) -> Trainer:
    """Everything of a training run; ``public`` is the configuration for the record, without secrets."""
    seed_everything(config.seed)
    splits = {"train", config.eval.split.value} | ({"val"} if config.eval.every else set())
    tasks = build_tasks(config, splits)
    if config.model.random_weights:
        create_folder(run_dir / "untrained", texts_of(tasks["train"]), seed=config.seed)
        config = replace(config, model=replace(config.model, path=str(run_dir / "untrained")))
    processor = build_processor(config)
    reward, eval_reward = build_reward(config, "reward"), build_reward(config, "eval.reward")
    trained = trained_tasks(config, tasks["train"])
    check_tasks(trained, processor, reward)
    check_tasks(tasks[config.eval.split.value], processor, eval_reward)
    policy = build_policy(config, processor)
    return Trainer(
        step_fn=build_step(config, trained, processor, reward, policy),
        policy=policy,
        evaluator=build_evaluator(config, tasks, processor, eval_reward, policy),
        tracker=build_tracker(config, public=public, run_dir=run_dir, job_type="train"),
        eval=config.eval,
        steps=config.steps,
        profile_steps=config.profile_steps,
        run_dir=run_dir,
        labels=labels(config),
    )


def build_evaluation(config: Config, *, public: Mapping[str, Any], run_dir: Path) -> tuple[Evaluator, Tracker]:
    """What evaluate.py needs: the held-out scores of ``model.path`` and where to record them."""
    seed_everything(config.seed)
    tasks = build_tasks(config, {config.eval.split.value})
    processor, reward = build_processor(config), build_reward(config, "eval.reward")
    check_tasks(tasks[config.eval.split.value], processor, reward)
    evaluator = build_evaluator(config, tasks, processor, reward, build_policy(config, processor))
    return evaluator, build_tracker(config, public=public, run_dir=run_dir, job_type="evaluate")


def trained_tasks(config: Config, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Those that the task mix, or a stage of supervised fine-tuning, has a share for."""
    mixes = [config.task_mix.shares]
    if isinstance(config.algo, SftConfig):
        mixes = [stage.shares for stage in config.algo.stages]
    return {name: task for name, task in tasks.items() if any(shares.get(name, 0) > 0 for shares in mixes)}


def labels(config: Config) -> dict[str, Any]:
    """What tells a run from others in a table of runs."""
    return {
        "model": config.model.name,
        "task_mix": config.task_mix.name,
        "reward": config.reward.get("name"),
        "seed": config.seed,
        "steps": config.steps,
    }


def seed_everything(seed: int) -> None:
    """For whatever draws from the global generators; the batches, samples and evaluations carry their own seeds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build_tasks(config: Config, splits: set[str]) -> dict[str, dict[str, Task]]:
    """Every task with its rows, by split. Rows that do not exist yet are made now, before the bar starts."""
    frames = FrameBudget(**vars(config.frames))
    dataset = make(config, "data", config.data)
    tasks = {name: make(config, f"tasks.{name}", node) for name, node in config.tasks.items()}
    for name, task in tasks.items():
        if task.name != name:
            raise ConfigError(f"tasks.{name} builds the task '{task.name}': call the key and the task the same")
    return {
        split: {name: task.with_rows(dataset.rows(task, split), frames) for name, task in tasks.items()}
        for split in sorted(splits)
    }


def build_processor(config: Config) -> Processor:
    return Processor.from_folder(config.model.path, FrameBudget(**vars(config.frames)), config.model.max_prompt_tokens)


def build_judge(config: Config) -> Judge:
    return make(config, "judge", config.judge)


def build_reward(config: Config, where: str) -> GatedSum:
    """The reward at ``where`` ("reward" or "eval.reward"); those with a parameter ``judge`` share one judge."""
    node = config.reward if where == "reward" else config.eval.reward
    judge = build_judge(config)

    def build_all(part: str) -> dict[str, Any]:
        present = {name: spec for name, spec in node[part].items() if spec is not None}  # null takes one out
        return {name: make(config, f"{where}.{part}.{name}", spec, judge=judge) for name, spec in present.items()}

    return GatedSum(gates=build_all("gates"), terms=build_all("terms"), weights=reward_weights(node))


def build_policy(config: Config, processor: Processor) -> QwenVLPolicy:
    spec = config.model
    disable_progress_bar()  # there is one bar, and it is ours
    module = load_model(
        spec.path,
        dtype=spec.dtype.value,
        attn_implementation=spec.attn_implementation.value,
        frozen=spec.frozen,
        gradient_checkpointing=spec.gradient_checkpointing,
        device=spec.device,
    )
    algo, optim = config.algo, {**vars(config.optim), "schedule": config.optim.schedule.value}
    updates = config.steps * (algo.ppo_epochs if isinstance(algo, GrpoConfig) else 1)
    engine_node = {"_target_": config.engine._target_}
    return QwenVLPolicy(
        module,
        processor,
        make(config, "engine", engine_node, module=module, total_updates=updates, **optim),
        temperature=config.rollout.temperature,
        micro_batch_groups=config.engine.micro_batch_groups,
        reference=frozen_copy(module) if isinstance(algo, GrpoConfig) and algo.kl_beta > 0 else None,
        saved_dtype=DTYPES[spec.saved_dtype.value] if spec.saved_dtype else None,
    )


def build_rollout(config: Config, policy: QwenVLPolicy, *, temperature: float) -> RolloutEngine:
    return make(config, "rollout", {**vars(config.rollout), "temperature": temperature}, policy=policy)


def build_step(
    config: Config, tasks: Mapping[str, Task], processor: Processor, reward: GatedSum, policy: QwenVLPolicy
) -> Callable[[int], StepResult]:
    """The function of a step number that the trainer loops over."""
    if isinstance(config.algo, SftConfig):
        return SftStep(
            config.algo.stages,
            tasks=tasks,
            processor=processor,
            policy=policy,
            prompts_per_step=config.prompts_per_step,
            seed=config.seed,
        )
    assert isinstance(config.algo, GrpoConfig)
    mix = config.task_mix
    return GrpoStep(
        mixture=Mixture(tasks, mix.shares, prompts_per_step=config.prompts_per_step, seed=config.seed, total=mix.total),
        processor=processor,
        rollout=build_rollout(config, policy, temperature=config.rollout.temperature),
        reward=reward,
        policy=policy,
        algo=config.algo,
        max_completion_tokens=config.rollout.max_completion_tokens,
    )


def build_evaluator(
    config: Config,
    tasks: Mapping[str, Mapping[str, Task]],
    processor: Processor,
    reward: GatedSum,
    policy: QwenVLPolicy,
) -> Evaluator:
    return Evaluator(
        tasks=tasks,
        processor=processor,
        rollout=build_rollout(config, policy, temperature=1.0),
        reward=reward,
        max_rows=config.rollout.max_rows,
        seed=config.seed,
    )


def build_tracker(config: Config, *, public: Mapping[str, Any], run_dir: Path, job_type: str) -> Tracker:
    if (run_dir / METRICS).exists():
        raise ConfigError(f"{run_dir} already holds a run: choose another hydra.run.dir")
    track, names = config.track, labels(config)
    sink = None
    if track.wandb is not WandbMode.off:
        sink = WandbSink(
            run_dir=run_dir,
            mode=mode_by_key() if track.wandb is WandbMode.auto else "offline",
            project=track.project,
            group=track.group or f"{names['model']} {names['task_mix']} {names['reward']}",
            job_type=job_type,
            tags=[*(str(names[key]) for key in ("model", "task_mix", "reward")), *track.tags],
            config=public,
        )
    return Tracker(
        run_dir,
        Console(),
        sink,
        completions_every=track.completions_every,
        completions_groups=track.completions_groups,
    )


def check_tasks(tasks: Mapping[str, Task], processor: Processor, reward: GatedSum) -> None:
    """Before anything is trained: prompts fit, and every task's gold answers earn the most there is."""
    for task in tasks.values():
        processor.encode(task.prompt(task.sample(0)))
    self_test(tasks, reward)


def make(config: Config, where: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """The object that ``node`` describes, once its names have been checked (see vidbridge/targets.py).

    ``injected`` are objects a configuration cannot hold; those that the target has no parameter for are left out
    (a reward that asks no judge).
    """
    target = check_targets(where, node, ("vidbridge.", *config.allowed_targets))
    wanted = {name: value for name, value in injected.items() if name in inspect.signature(target).parameters}
    check_arguments(where, target, node, wanted)
    try:
        return instantiate(dict(node), **wanted, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error


@contextmanager
def as_config_errors() -> Iterator[None]:
    """While a run is put together, a ValueError is about the configuration; errors about the data stay that."""
    try:
        yield
    except (ConfigError, DataError, VideoError):
        raise
    except OSError as error:  # a folder that cannot be written, a file that cannot be read
        raise DataError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
