"""What train.py needs: everything of a training run from its typed configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

from vidbridge.algo.advantages import SCALES
from vidbridge.algo.mismatch import CORRECTIONS
from vidbridge.algo.objectives import OBJECTIVES
from vidbridge.backbones import backbone_of
from vidbridge.build.common import (
    build_dataset,
    build_eval_reward,
    build_evaluator,
    build_judge,
    build_module,
    build_processor,
    build_reward,
    build_tasks,
    build_tracker,
    check_same_rows,
    check_tasks,
    labels,
)
from vidbridge.config.choices import Resume
from vidbridge.config.instantiate import free_keys, function_named
from vidbridge.config.renamed import GONE
from vidbridge.config.schema import Config, GrpoConfig, SftConfig
from vidbridge.data.loader import BAD_SAMPLES, BadSamples, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics.gradients import Diagnostics
from vidbridge.errors import ConfigError
from vidbridge.policy.adapters import has_adapters
from vidbridge.policy.loading import DTYPES, resolve_device
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.policy.processor import Processor
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.runtime.checkpoint import Checkpointer
from vidbridge.runtime.random_state import seed_everything
from vidbridge.sampler import Sampler
from vidbridge.sft_step import SftStep
from vidbridge.shapes_world.create_model import create_folder, texts_of
from vidbridge.step import GrpoStep
from vidbridge.tasks.rows import TaskRows
from vidbridge.trainer import Trainer


def build_trainer(config: Config, *, public: Mapping[str, Any], run_dir: Path) -> Trainer:
    """Return everything of a training run; ``public`` is the configuration for the record, without secrets."""
    seed_everything(config.seed)
    # first what is quick to refuse, then the data, which may take minutes to make
    device, local_ranks = resolve_device(config.model.device), collectives.local_world_size()
    config.rollout.check_here()
    judge = build_judge(config)
    reward, eval_reward = build_reward(config, "reward", config.reward, judge), build_eval_reward(config, judge)
    processor = None if config.model.random_weights else build_processor(config)
    splits = {"train", config.eval.split.value} | ({"val"} if config.eval.every else set())
    dataset = build_dataset(config)
    tasks = collectives.local_rank_0_first(lambda: build_tasks(config, dataset, splits, processor))
    if processor is None:  # the words of the untrained model are those of the data
        with collectives.fail_together():
            if collectives.is_rank_0():
                create_folder(run_dir / "untrained", texts_of(tasks["train"]), config.model.shape, seed=config.seed)
        config = replace(config, model=replace(config.model, path=str(run_dir / "untrained")))
        processor = build_processor(config)
        tasks = build_tasks(config, dataset, splits, processor)  # that read frames in its size
    config.rollout.check_model(processor.config, device=device, local_ranks=local_ranks)
    check_same_rows(tasks)
    steps = num_steps(config, tasks["train"])
    trained = trained_tasks(config, tasks["train"])
    bad = BadSamples(run_dir / BAD_SAMPLES, dataset.max_bad_frac)
    check_tasks(trained, processor, reward, bad, perfect=dataset.gold_is_perfect)
    check_tasks(tasks[config.eval.split.value], processor, eval_reward, bad, perfect=dataset.gold_is_perfect)
    policy = build_learner(config, processor, steps)
    rollout, total = config.rollout.build(policy), deck_size(config, tasks["train"])
    names = train_labels(config, steps)
    step = build_step(config, trained, processor, reward, policy, rollout, bad, steps=steps, total=total)
    return Trainer(
        step_fn=step,
        kept=(step.sampler,) if isinstance(step, GrpoStep) else (),
        policy=policy,
        evaluator=build_evaluator(config, tasks, processor, eval_reward, policy, bad, rollout=rollout),
        tracker=build_tracker(config, names, public=public, run_dir=run_dir, job_type="train"),
        checkpointer=Checkpointer(
            run_dir / "checkpoints",
            every=config.checkpoint.every,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        ),
        resume=config.resume is Resume.auto,
        eval=config.eval,
        steps=steps,
        first_look=config.diagnostics_every > 0,
        profile_steps=config.profile_steps,
        run_dir=run_dir,
        labels=names,
        record=public,
        # the numbers of a model that has weights are for plan=true
        free=(*free_keys(config), *GONE, *(() if config.model.random_weights else ("model.shape",))),
    )


def build_learner(config: Config, processor: Processor, steps: int) -> Policy:
    """Return the model as a policy, with the engine that trains it and, where ``kl_beta`` asks for it, a reference."""
    spec, algo = config.model, config.algo
    module = build_module(spec, divided=config.engine.divides_weights)
    if algo.router_aux_coef and not backbone_of(module.config.model_type).routers(module):
        kind = module.config.model_type
        raise ConfigError(f"algo.router_aux_coef={algo.router_aux_coef}: {kind} has no router, set it to 0")
    has_reference = isinstance(algo, GrpoConfig) and algo.kl_beta > 0
    # before an engine divides the weights; adapters need no copy: without them the model is what it was
    reference = None
    if has_reference and not has_adapters(module):
        reference = frozen_copy(module).to(resolve_device(spec.device))
    updates = steps * (algo.ppo_epochs if isinstance(algo, GrpoConfig) else 1)
    engine = config.engine.build(module, config.optim, total_updates=updates)
    if has_reference and reference is None:
        reference = engine.whole()
    return Policy(
        module,
        processor,
        engine,
        temperature=config.rollout.temperature,
        max_packed_tokens=config.engine.max_packed_tokens,
        reference=reference,
        saved_dtype=DTYPES[spec.saved_dtype.value] if spec.saved_dtype else None,
        router_aux_coef=algo.router_aux_coef,
        save_merged=spec.adapter is not None and spec.adapter.merged,
    )


def build_step(
    config: Config,
    tasks: Mapping[str, TaskRows],
    processor: Processor,
    reward: GatedSum,
    policy: Policy,
    rollout: RolloutEngine,
    bad: BadSamples,
    *,
    steps: int,
    total: int,
) -> GrpoStep | SftStep:
    """The function of a step number that the trainer loops over; ``total`` rows make a pass of the task mix."""
    if config.prompts_per_step < collectives.world_size():
        raise ConfigError(
            f"prompts_per_step={config.prompts_per_step} leaves some of the {collectives.world_size()} ranks "
            "without a prompt"
        )
    if isinstance(config.algo, SftConfig):
        return SftStep(
            config.algo.stages,
            tasks=tasks,
            processor=processor,
            policy=policy,
            prompts_per_step=config.prompts_per_step,
            seed=config.seed,
            last=steps - 1,
            bad=bad,
        )
    assert isinstance(config.algo, GrpoConfig)
    return GrpoStep(
        sampler=Sampler(
            mixture=Mixture(
                tasks, config.task_mix.shares, prompts_per_step=config.prompts_per_step, seed=config.seed, total=total
            ),
            loader=Loader(tasks, processor, bad),
            rollout=rollout,
            reward=reward,
            sampling=config.rollout.sampling(),
            last=steps - 1,
            ahead=config.rollout.ahead > 0,
            policy=policy,
            group_size=config.algo.group_size,
        ),
        policy=policy,
        algo=config.algo,
        objective=function_named(config, "algo.objective", config.algo.objective, OBJECTIVES),
        advantage_scale=function_named(config, "algo.advantage_scale", config.algo.advantage_scale, SCALES),
        correction=function_named(config, "algo.correction", config.algo.correction, CORRECTIONS),
        diagnostics=Diagnostics(module=policy.module, processor=processor, every=config.diagnostics_every),
    )


def train_labels(config: Config, steps: int) -> dict[str, Any]:
    """Return the ``labels`` of a training run."""
    names = {**labels(config), "algo": "sft", "steps": steps}
    if isinstance(config.algo, GrpoConfig):
        names |= {"algo": "grpo", "task_mix": config.task_mix.name, "reward": config.reward.get("name")}
    return names


def trained_tasks(config: Config, tasks: Mapping[str, TaskRows]) -> dict[str, TaskRows]:
    """Return the tasks that the mix, or a stage of supervised fine-tuning, has a share for."""
    mixes = [config.task_mix.shares]
    if isinstance(config.algo, SftConfig):
        mixes = [stage.shares for stage in config.algo.stages]
    return {name: task for name, task in tasks.items() if any(shares.get(name, 0) > 0 for shares in mixes)}


def deck_size(config: Config, tasks: Mapping[str, TaskRows]) -> int:
    """Rows in one pass of the task mix, as a part of the rows of all ``tasks``, trained or not."""
    return max(1, round(config.task_mix.size_frac * sum(len(task) for task in tasks.values())))


def num_steps(config: Config, tasks: Mapping[str, TaskRows]) -> int:
    """``config.steps``; without a number, all stages of supervised fine-tuning, or one pass over the deck."""
    if config.steps is not None:
        return config.steps
    if isinstance(config.algo, SftConfig):
        return config.algo.num_steps
    return math.ceil(deck_size(config, tasks) / config.prompts_per_step)
