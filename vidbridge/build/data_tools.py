"""What the commands of build_data.py need."""

from __future__ import annotations

from pathlib import Path

from vidbridge.build.common import (
    build_dataset,
    build_eval_reward,
    build_evaluator,
    build_judge,
    build_plain_tasks,
    build_policy,
    build_processor,
)
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.config.instantiate import make
from vidbridge.config.schema import RunConfig
from vidbridge.data.loader import BAD_SAMPLES, BadSamples
from vidbridge.data.tools.job import Job
from vidbridge.data.tools.write_qa import Write
from vidbridge.errors import ConfigError
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.policy.loading import resolve_device
from vidbridge.policy.processor import Processor
from vidbridge.record.console import Console
from vidbridge.runtime import collectives
from vidbridge.runtime.random_state import seed_everything


def build_job(config: EvaluateConfig, processor: Processor | None, *, run_dir: Path, number: int | None) -> Job:
    """Return the rows and the folder that a command of build_data.py works on."""
    if number is not None and number < 1:
        raise ConfigError(f"--number must be at least 1, got {number}")
    dataset = build_dataset(config)
    tasks = build_plain_tasks(config, dataset, processor, config.benchmark.prompting)
    return Job(dataset=dataset, tasks=tasks, folder=run_dir, number=number)


def find_processor(config: RunConfig) -> Processor | None:
    """Return the processor, or None, which is said, where neither a folder nor the hub has the model.

    ValueError for a folder that is broken.
    """
    try:
        return build_processor(config)
    except ValueError as error:
        if Path(config.model.path).exists():
            raise
        Console().say(f"{error}: prompts are shown without its chat template, frames in the size of their file")
        return None


def build_writer(config: RunConfig) -> Write:
    """The model of judge=openai that grades answers, here to write questions: one that sees."""
    node = config.judge.get("answers")
    if not node or not node["_target_"].endswith(".OpenAIChat"):
        raise ConfigError("write_qa needs a model on a server: judge=openai judge.answers.base_url=.. and .model=..")
    return make(config, "judge.answers", node).chat


def build_sampler(config: EvaluateConfig, job: Job, processor: Processor) -> Evaluator:
    """Return an evaluator that answers the rows of a job and scores them as held-out ones."""
    seed_everything(config.seed)
    device, local_ranks = resolve_device(config.model.device), collectives.local_world_size()
    config.rollout.check_model(processor.config, device=device, local_ranks=local_ranks)
    reward = build_eval_reward(config, build_judge(config))
    bad = BadSamples(job.folder / BAD_SAMPLES, job.dataset.max_bad_frac)
    policy = build_policy(config, processor)
    evaluator = build_evaluator(config, {}, processor, reward, policy, bad, config.benchmark.prompting)
    evaluator.rollout.sync(policy)
    return evaluator
