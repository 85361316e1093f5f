"""Everything that a command needs, one function each; the single objects are made in parts.py."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping

from vidbridge.runtime import collectives
from vidbridge.runtime.checkpoint import Checkpointer
from vidbridge.errors import ConfigError
from vidbridge.config.choices import Resume, WandbMode
from vidbridge.config.schema import WANDB_NAME, WANDB_TAG, Config, SftConfig
from vidbridge.data.tools.job import Job
from vidbridge.data.tools.write_qa import Write
from vidbridge.data.loader import BAD_SAMPLES, BadSamples, Loader
from vidbridge.errors import DataError
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.errors import VideoError
from vidbridge.build.common import (
    build_dataset,
    build_eval_reward,
    build_evaluator,
    build_judge,
    build_plain_tasks,
    build_policy,
    build_processor,
    build_reward,
    build_step,
    build_tasks,
)
from vidbridge.policy.engines.files import load_weights
from vidbridge.policy.loading import resolve_device
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.runtime.progress import waiting
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import self_test
from vidbridge.runtime.random_state import seed_everything
from vidbridge.config.instantiate import make
from vidbridge.tasks.base import Task
from vidbridge.shapes_world.create_model import create_folder, texts_of
from vidbridge.record.console import Console
from vidbridge.record.tracker import SilentTracker, Tracker
from vidbridge.record.wandb_sink import WandbSink, mode_by_key
from vidbridge.trainer import Trainer


def build_trainer(config: Config, *, public: Mapping[str, Any], run_dir: Path) -> Trainer:
    """Everything of a training run; ``public`` is the configuration for the record, without secrets."""
    seed_everything(config.seed)
    # first what is quick to refuse, then the data, which may take minutes to make
    resolve_device(config.model.device)
    if config.model.checkpoint is not None:
        raise ConfigError("model.checkpoint belongs to evaluate.py; to train on from a model, say model.path=..")
    judge = build_judge(config)
    reward, eval_reward = build_reward(config, "reward", judge), build_eval_reward(config, judge)
    processor = None if config.model.random_weights else build_processor(config)
    splits = {"train", config.eval.split.value} | ({"val"} if config.eval.every else set())
    dataset = build_dataset(config)
    tasks = collectives.local_rank_0_first(lambda: build_tasks(config, dataset, splits, processor))
    if processor is None:  # the words of the untrained model are those of the data
        with collectives.fail_together():
            if collectives.is_rank_0():
                create_folder(run_dir / "untrained", texts_of(tasks["train"]), seed=config.seed)
        config = replace(config, model=replace(config.model, path=str(run_dir / "untrained")))
        processor = build_processor(config)
        tasks = build_tasks(config, dataset, splits, processor)  # that read frames in its size
    check_same_rows(tasks)
    config = replace(config, steps=num_steps(config, tasks["train"]))
    trained = trained_tasks(config, tasks["train"])
    bad = BadSamples(run_dir / BAD_SAMPLES, dataset.max_bad_frac)
    check_tasks(trained, processor, reward, bad, perfect=dataset.gold_is_perfect)
    check_tasks(tasks[config.eval.split.value], processor, eval_reward, bad, perfect=dataset.gold_is_perfect)
    policy = build_policy(config, processor, trains=True)
    return Trainer(
        step_fn=build_step(config, trained, processor, reward, policy, bad, total=deck_size(config, tasks["train"])),
        policy=policy,
        evaluator=build_evaluator(config, tasks, processor, eval_reward, policy, bad),
        tracker=build_tracker(config, public=public, run_dir=run_dir, job_type="train"),
        checkpointer=Checkpointer(
            run_dir / "checkpoints",
            every=config.checkpoint.every,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        ),
        resume=config.resume is Resume.auto,
        eval=config.eval,
        steps=num_steps(config, tasks["train"]),
        first_look=config.diagnostics_every > 0,
        profile_steps=config.profile_steps,
        run_dir=run_dir,
        labels=labels(config),
        record=public,
    )


def build_evaluation(config: Config, *, public: Mapping[str, Any], run_dir: Path) -> tuple[Evaluator, Tracker]:
    """What evaluate.py needs: the benchmark, the model to be asked, and where to record what it earns."""
    seed_everything(config.seed)
    resolve_device(config.model.device)
    reward, processor = build_eval_reward(config, build_judge(config)), build_processor(config)
    dataset = build_dataset(config)
    splits, prompting = {config.eval.split.value}, config.benchmark.prompting
    tasks = collectives.local_rank_0_first(lambda: build_tasks(config, dataset, splits, processor, prompting))
    check_same_rows(tasks)
    bad = BadSamples(run_dir / BAD_SAMPLES, dataset.max_bad_frac)
    check_tasks(tasks[config.eval.split.value], processor, reward, bad, perfect=dataset.gold_is_perfect)
    evaluator = build_evaluator(config, tasks, processor, reward, build_evaluated(config, processor), bad, prompting)
    return evaluator, build_tracker(config, public=public, run_dir=run_dir, job_type="evaluate")


def build_agreement(config: Config) -> tuple[Judge, Judge, GatedSum]:
    """Both judges, and the reward that says what they are asked for each task."""
    if config.agreement.judge is None:
        raise ConfigError("agreement.judge: a second judge is needed: +judge@agreement.judge=openai")
    first = build_judge(config)
    second = make(config, "agreement.judge", config.agreement.judge)
    return first, second, build_reward(config, "eval.reward", first)


def build_job(config: Config, processor: Processor | None, *, run_dir: Path, number: int | None) -> Job:
    """What the commands of build_data.py work on."""
    if number is not None and number < 1:
        raise ConfigError(f"--number must be at least 1, got {number}")
    dataset = build_dataset(config)
    tasks = build_plain_tasks(config, dataset, processor, config.benchmark.prompting)
    return Job(dataset=dataset, tasks=tasks, folder=run_dir, number=number)


def find_processor(config: Config) -> Processor | None:
    """None, which is said, where neither a folder nor the hub has the model. ValueError for a folder that is broken."""
    try:
        return build_processor(config)
    except ValueError as error:
        if Path(config.model.path).exists():
            raise
        Console().say(f"{error}: prompts are shown without its chat template, frames in the size of their file")
        return None


def build_writer(config: Config) -> Write:
    """The model of judge=openai that grades answers, here to write questions: one that sees."""
    node = config.judge.get("answers")
    if not node or not node["_target_"].endswith(".OpenAIChat"):
        raise ConfigError("write_qa needs a model on a server: judge=openai judge.answers.base_url=.. and .model=..")
    return make(config, "judge.answers", node).chat


def build_sampler(config: Config, job: Job, processor: Processor) -> Evaluator:
    """That answers the rows of a job and scores the answers as held-out ones."""
    seed_everything(config.seed)
    resolve_device(config.model.device)
    reward = build_eval_reward(config, build_judge(config))
    bad = BadSamples(job.folder / BAD_SAMPLES, job.dataset.max_bad_frac)
    policy = build_policy(config, processor, trains=False)
    evaluator = build_evaluator(config, {}, processor, reward, policy, bad, config.benchmark.prompting)
    evaluator.rollout.sync(policy)
    return evaluator


def build_evaluated(config: Config, processor: Processor) -> QwenVLPolicy:
    """The model at ``model.path``, or with the weights of a checkpoint in their place."""
    policy = build_policy(config, processor, trains=False)
    if config.model.checkpoint is not None:
        with collectives.fail_together():
            load_weights(policy.module, Path(config.model.checkpoint))
    return policy


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
    """What tells a run from others in a table of runs; None for what this run makes no use of."""
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


def trained_tasks(config: Config, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Those that the task mix, or a stage of supervised fine-tuning, has a share for."""
    mixes = [config.task_mix.shares]
    if isinstance(config.algo, SftConfig):
        mixes = [stage.shares for stage in config.algo.stages]
    return {name: task for name, task in tasks.items() if any(shares.get(name, 0) > 0 for shares in mixes)}


def deck_size(config: Config, tasks: Mapping[str, Task]) -> int:
    """Rows in one pass of the task mix, as a part of the rows of all ``tasks``, trained or not."""
    return max(1, round(config.task_mix.size_frac * sum(len(task) for task in tasks.values())))


def num_steps(config: Config, tasks: Mapping[str, Task]) -> int:
    """``config.steps``; without a number, all stages of supervised fine-tuning, or one pass over the deck."""
    if config.steps is not None:
        return config.steps
    if isinstance(config.algo, SftConfig):
        return config.algo.num_steps
    return math.ceil(deck_size(config, tasks) / config.prompts_per_step)


def check_same_rows(tasks: Mapping[str, Mapping[str, Task]]) -> None:
    """All ranks deal out the same rows; where one finds other files than the rest, they would not notice."""
    found = {split: {name: len(task) for name, task in of_split.items()} for split, of_split in tasks.items()}
    for rank, other in enumerate(collectives.all_gather(found)):
        if other != found:
            raise DataError(f"rank {collectives.rank()} finds {found}, rank {rank} {other}: do all see the same files?")


def check_tasks(
    tasks: Mapping[str, Task], processor: Processor, reward: GatedSum, bad: BadSamples, *, perfect: bool
) -> None:
    """Before anything is trained: prompts fit, and every task's gold answers earn the most there is, or something."""

    def check() -> None:
        Loader(tasks, processor, bad).load({place: task.sample(0) for place, task in enumerate(tasks.values())})
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
