"""What evaluate.py needs: the model that is asked, or two judges that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from vidbridge.build.common import (
    build_dataset,
    build_eval_reward,
    build_evaluator,
    build_judge,
    build_policy,
    build_processor,
    build_reward,
    build_tasks,
    build_tracker,
    check_same_rows,
    check_tasks,
    labels,
)
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.config.instantiate import make
from vidbridge.data.loader import BAD_SAMPLES, BadSamples
from vidbridge.errors import ConfigError
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge
from vidbridge.policy.engines.files import load_weights
from vidbridge.policy.loading import resolve_device
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.record.tracker import Tracker
from vidbridge.rewards.base import GatedSum
from vidbridge.runtime import collectives
from vidbridge.runtime.random_state import seed_everything


def build_evaluation(config: EvaluateConfig, *, public: Mapping[str, Any], run_dir: Path) -> tuple[Evaluator, Tracker]:
    """Return what evaluate.py needs: the benchmark, the model to be asked, and where to record what it earns."""
    seed_everything(config.seed)
    device, local_ranks = resolve_device(config.model.device), collectives.local_world_size()
    config.rollout.check_here()
    reward, processor = build_eval_reward(config, build_judge(config)), build_processor(config)
    config.rollout.check_model(processor.config, device=device, local_ranks=local_ranks)
    dataset = build_dataset(config)
    splits, prompting = {config.eval.split.value}, config.benchmark.prompting
    tasks = collectives.local_rank_0_first(lambda: build_tasks(config, dataset, splits, processor, prompting))
    check_same_rows(tasks)
    bad = BadSamples(run_dir / BAD_SAMPLES, dataset.max_bad_frac)
    check_tasks(tasks[config.eval.split.value], processor, reward, bad, perfect=dataset.gold_is_perfect)
    evaluator = build_evaluator(config, tasks, processor, reward, build_evaluated(config, processor), bad, prompting)
    tracker = build_tracker(config, labels(config), public=public, run_dir=run_dir, job_type="evaluate")
    return evaluator, tracker


def build_evaluated(config: EvaluateConfig, processor: Processor) -> Policy:
    """Return the model at ``model.path``, or with the weights of a checkpoint in their place."""
    policy = build_policy(config, processor)
    if config.checkpoint is not None:
        with collectives.fail_together():
            load_weights(policy.module, Path(config.checkpoint))
    return policy


def build_agreement(config: EvaluateConfig) -> tuple[Judge, Judge, GatedSum]:
    """Both judges, and the reward that says what they are asked for each task."""
    if config.agreement.judge is None:
        raise ConfigError("agreement.judge: a second judge is needed: +judge@agreement.judge=openai")
    first = build_judge(config)
    second = make(config, "agreement.judge", config.agreement.judge)
    return first, second, build_reward(config, "eval.reward", config.eval.reward, first)
