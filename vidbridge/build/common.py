"""From the typed configuration to one object each, for more than one command."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping

from torch import nn
from transformers.utils.logging import disable_progress_bar

from vidbridge.config.checks import reward_weights
from vidbridge.config.choices import Prompting, WandbMode
from vidbridge.config.instantiate import make
from vidbridge.config.schema import WANDB_NAME, WANDB_TAG, Config, GrpoConfig, SftConfig
from vidbridge.data.dataset import Dataset
from vidbridge.data.loader import BadSamples, Loader
from vidbridge.errors import ConfigError, DataError, VideoError
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.engines.base import Engine
from vidbridge.policy.loading import DTYPES, load_model
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.policy.processor import Processor
from vidbridge.record.console import Console
from vidbridge.record.tracker import SilentTracker, Tracker
from vidbridge.record.wandb_sink import WandbSink, mode_by_key
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import self_test
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.runtime.progress import waiting
from vidbridge.tasks.rows import TaskRows


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


def build_dataset(config: Config) -> Dataset:
    where = "data" if config.data is not config.benchmark.data else "benchmark.data"
    return make(config, where, config.data)


def build_tasks(
    config: Config,
    dataset: Dataset,
    splits: set[str],
    processor: Processor | None,
    prompting: Prompting = Prompting.thinking,
) -> dict[str, dict[str, TaskRows]]:
    """Return every task with its rows, by split. Rows that do not exist yet are made now."""

    def filled(task: TaskRows, split: str) -> TaskRows:
        found = dataset.filled(task, split)
        if split != "train" or config.train_rows is None:
            return found
        return replace(found, rows=[found.rows[index] for index in range(min(config.train_rows, len(found)))])

    tasks = build_plain_tasks(config, dataset, processor, prompting)
    return {split: {name: filled(task, split) for name, task in tasks.items()} for split in sorted(splits)}


def build_plain_tasks(
    config: Config, dataset: Dataset, processor: Processor | None, prompting: Prompting
) -> dict[str, TaskRows]:
    """Return the tasks of the configuration, without rows; without a processor frames keep their size."""
    frames = processor.frames if processor else FrameBudget(**vars(config.frames))
    tasks = {name: make(config, f"tasks.{name}", node) for name, node in config.tasks.items()}
    for name, task in tasks.items():
        if task.name != name:
            raise ConfigError(f"tasks.{name} builds the task '{task.name}': call the key and the task the same")
    return {
        name: TaskRows(
            task=task, template=config.prompt.template(name, prompting), frames=frames, read=dataset.reader
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
    """Return the reward at ``where`` ("reward" or "eval.reward"); all terms that ask a judge share this one."""
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


def build_policy(config: Config, processor: Processor, *, trains: bool) -> Policy:
    """Return the model as a policy, with the optimizer and the reference of training where it ``trains``."""
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
    return Policy(
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


def build_rollout(config: Config, policy: Policy) -> RolloutEngine:
    node = {"_target_": config.rollout._target_, "max_rows": config.rollout.max_rows}
    return make(config, "rollout", node, policy=policy)


def build_evaluator(
    config: Config,
    tasks: Mapping[str, Mapping[str, TaskRows]],
    processor: Processor,
    reward: GatedSum,
    policy: Policy,
    bad: BadSamples,
    prompting: Prompting = Prompting.thinking,
    rollout: RolloutEngine | None = None,
) -> Evaluator:
    """``prompting`` is the variant that ``tasks`` were built with; ``rollout`` is that of training, if it trains."""
    return Evaluator(
        tasks=tasks,
        policy=policy,
        processor=processor,
        rollout=rollout or build_rollout(config, policy),
        # whatever training samples with, so that scores of different runs compare
        sampling=replace(config.rollout.sampling(), temperature=1.0, top_p=1.0, min_p=0.0),
        reward=reward,
        max_rows=config.rollout.max_rows,
        seed=config.seed,
        bad=bad,
        direct=prompting is Prompting.direct,
    )


def build_tracker(config: Config, *, public: Mapping[str, Any], run_dir: Path, job_type: str) -> Tracker:
    tables = {
        "completions_every": config.track.completions_every,
        "completions_groups": config.track.completions_groups,
    }
    if not collectives.is_rank_0():
        return SilentTracker(run_dir, **tables, hang_s=config.hang_s)
    names = labels(config, trains=job_type == "train")
    tags = [str(names[key]) for key in ("model", "algo", "task_mix", "reward") if names[key]]
    track = config.track
    sink = None
    if track.wandb is not WandbMode.off:
        sink = WandbSink(
            run_dir=run_dir,
            mode=mode_by_key() if track.wandb is WandbMode.auto else "offline",
            project=track.project,
            group=track.group or " ".join(tags)[:WANDB_NAME],
            job_type=job_type,
            tags=[*(tag[:WANDB_TAG] for tag in tags), *track.tags],
            config=public,
        )
    return Tracker(run_dir, Console(), sink, **tables, hang_s=config.hang_s)


def labels(config: Config, *, trains: bool = True) -> dict[str, Any]:
    """Return what tells a run from others in a table of runs; None for what this run makes no use of."""
    algo = None if not trains else "sft" if isinstance(config.algo, SftConfig) else "grpo"
    return {
        "model": config.model.name,
        "prompt": config.prompt.name,
        "algo": algo,
        "task_mix": config.task_mix.name if algo == "grpo" else None,
        "reward": config.reward.get("name") if algo == "grpo" else None,
        "seed": config.seed,
        "steps": config.steps if trains else None,
    }


def check_same_rows(tasks: Mapping[str, Mapping[str, TaskRows]]) -> None:
    """All ranks deal out the same rows; where one finds other files than the rest, they would not notice."""
    found = {split: {name: len(task) for name, task in of_split.items()} for split, of_split in tasks.items()}
    for rank, other in enumerate(collectives.all_gather(found)):
        if other != found:
            raise DataError(f"rank {collectives.rank()} finds {found}, rank {rank} {other}: do all see the same files?")


def check_tasks(
    tasks: Mapping[str, TaskRows], processor: Processor, reward: GatedSum, bad: BadSamples, *, perfect: bool
) -> None:
    """Before anything is trained: prompts fit, and every task's gold answers earn the most there is, or something."""

    def check() -> None:
        Loader(tasks, processor, bad).load({index: task.sample(0) for index, task in enumerate(tasks.values())})
        judge, say = reward.judge, Console().say
        if judge is None or not judge.where:
            self_test(tasks, reward, perfect=perfect)
            return
        patience = f"; an answer is waited for {judge.deadline_s:g} s" if judge.deadline_s < math.inf else ""
        say(f"asking the judge about gold answers: {judge.where}{patience} ..")
        with waiting(say, lambda: judge.last_failure):
            self_test(tasks, reward, perfect=perfect)
        if judge.notes:
            say(judge.notes)

    collectives.local_rank_0_first(check)  # with a judge that is a model, the others find its replies in the cache
