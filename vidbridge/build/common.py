"""From the typed configuration to one object each, for more than one command."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping

from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from vidbridge.config.checks import reward_weights
from vidbridge.config.choices import Prompting, WandbMode
from vidbridge.config.instantiate import make
from vidbridge.config.schema import WANDB_NAME, WANDB_TAG, ModelConfig, RunConfig
from vidbridge.data.dataset import Dataset
from vidbridge.data.loader import BadSamples, Loader
from vidbridge.errors import ConfigError, DataError, VideoError
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
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


def build_dataset(config: RunConfig) -> Dataset:
    return make(config, "data", config.data)


def build_tasks(
    config: RunConfig,
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
    config: RunConfig, dataset: Dataset, processor: Processor | None, prompting: Prompting
) -> dict[str, TaskRows]:
    """Return the tasks of the configuration, without rows; without a processor frames keep their size."""
    frames = processor.frames if processor else config.frames.budget()
    tasks = {name: make(config, f"tasks.{name}", node) for name, node in config.tasks.items()}
    return {
        name: TaskRows(
            task=task, template=config.prompt.template(name, prompting), frames=frames, read=dataset.reader
        )
        for name, task in tasks.items()
    }


def build_processor(config: RunConfig) -> Processor:
    if not Path(config.model.path).exists():
        Console().say(f"no folder {config.model.path} here: asking the Hugging Face hub ..")
    return Processor.from_folder(config.model.path, config.frames.budget(), config.model.max_prompt_tokens).sized()


def build_judge(config: RunConfig) -> Judge:
    return make(config, "judge", config.judge)


def build_reward(config: RunConfig, where: str, node: Mapping[str, Any], judge: Judge) -> GatedSum:
    """Return the reward that ``node``, found at ``where``, describes; all terms that ask a judge share this one."""

    def build_all(part: str) -> dict[str, Any]:
        present = {name: spec for name, spec in node[part].items() if spec is not None}  # null takes one out
        return {name: make(config, f"{where}.{part}.{name}", spec, judge=judge) for name, spec in present.items()}

    return GatedSum(gates=build_all("gates"), terms=build_all("terms"), weights=reward_weights(node), judge=judge)


def build_eval_reward(config: RunConfig, judge: Judge) -> GatedSum:
    reward = build_reward(config, "eval.reward", config.eval.reward, judge)
    for task in config.tasks:
        if reward.maximum(task) <= 0:
            raise ConfigError(f"eval.reward.{task} pays for nothing: scores are parts of the most that can be earned")
    return reward


def build_module(spec: ModelConfig, *, divided: bool = False) -> PreTrainedModel:
    disable_progress_bar()  # there is one bar, and it is ours
    return load_model(
        spec.path,
        dtype=spec.dtype.value,
        attn_implementation=spec.attn_implementation.value,
        frozen=spec.frozen,
        adapter=spec.adapter,
        gradient_checkpointing=spec.gradient_checkpointing,
        device=spec.device,
        divided=divided,
    )


def build_policy(config: RunConfig, processor: Processor) -> Policy:
    """Return the model as a policy that is not trained."""
    return Policy(build_module(config.model), processor, temperature=config.rollout.temperature)


def build_evaluator(
    config: RunConfig,
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
        rollout=rollout or config.rollout.build(policy),
        # whatever training samples with, so that scores of different runs compare
        sampling=replace(config.rollout.sampling(), temperature=1.0, top_p=1.0, min_p=0.0),
        reward=reward,
        max_rows=config.rollout.max_rows,
        seed=config.seed,
        bad=bad,
        direct=prompting is Prompting.direct,
    )


def build_tracker(
    config: RunConfig, names: Mapping[str, Any], *, public: Mapping[str, Any], run_dir: Path, job_type: str
) -> Tracker:
    """Return where a run is recorded; ``names`` are its ``labels``."""
    track = config.track
    tables = {"completions_every": track.completions_every, "completions_groups": track.completions_groups}
    if not collectives.is_rank_0():
        return SilentTracker(run_dir, **tables, hang_s=config.hang_s)
    tags = [str(names[key]) for key in ("model", "algo", "task_mix", "reward") if names[key]]
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


def labels(config: RunConfig) -> dict[str, Any]:
    """Return what tells a run from others in a table of runs; None for what belongs to training."""
    return {
        "model": config.model.name,
        "prompt": config.prompt.name,
        "algo": None,
        "task_mix": None,
        "reward": None,
        "seed": config.seed,
        "steps": None,
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
