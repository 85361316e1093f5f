"""What evaluate.py and build_data.py may be told: RunConfig, and which questions are asked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Dict, Optional

from omegaconf import MISSING

from vidbridge.config.checks import check_covered, check_reward, require, require_positive
from vidbridge.config.choices import Prompting
from vidbridge.config.schema import Config, FramesConfig, RunConfig


@dataclass
class BenchmarkConfig:
    """The questions that the model is asked. What is empty or null is as in training."""

    name: str = MISSING
    data: Any = None
    tasks: Dict[str, Any] = field(default_factory=dict)
    reward: Dict[str, Any] = field(default_factory=dict)  # empty: eval.reward
    frames: Optional[FramesConfig] = None
    prompting: Prompting = Prompting.thinking
    max_prompt_tokens: Optional[int] = None
    max_completion_tokens: Optional[int] = None
    num_items: Optional[int] = None  # of each task; null: all
    num_samples: int = 0  # completions of each item at temperature 1, for mean@n and pass@k; 0: none
    greedy: bool = True

    def __post_init__(self) -> None:
        told = "benchmark.data: a benchmark with tasks or a reward of its own needs data of its own"
        require(self.data is not None or not (self.tasks or self.reward), told)
        require(self.num_samples >= 0, f"benchmark.num_samples must be 0 or positive, got {self.num_samples}")
        require(self.greedy or self.num_samples > 0, "benchmark: with greedy=false num_samples must be positive")
        for name in ("max_prompt_tokens", "max_completion_tokens", "num_items"):
            if getattr(self, name) is not None:
                require_positive("benchmark", self, name)
        if self.reward:
            check_reward("benchmark.reward", self.reward)


@dataclass
class AgreementConfig:
    """Settings of evaluate.py judge_agreement; the first judge is that of the run."""

    completions: Optional[str] = None  # completions.jsonl of a run
    judge: Any = None  # the second judge: +judge@agreement.judge=openai


@dataclass
class EvaluateConfig(RunConfig):
    checkpoint: Optional[str] = None  # the folder of a run, a model's folder or its hub id; null: model.path
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    agreement: AgreementConfig = field(default_factory=AgreementConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_covered("eval.reward", self.eval.reward, self.tasks)
        if self.benchmark.data is not None:
            where = "benchmark" if self.benchmark.reward else "eval"
            check_covered(f"{where}.reward", getattr(self, where).reward, self.benchmark.tasks)


# What the yamls of models, tasks and debug=.. also say: evaluate.py leaves it out.
OF_TRAINING = {each.name for each in fields(Config)} - {each.name for each in fields(EvaluateConfig)}


def is_of_training(override: str) -> bool:
    """Return whether evaluate.py has no such key, but train.py has.

    >>> [is_of_training(each) for each in ("algo=dapo", "optim.lr=1", "seed=3", "checkpoint.every=1", "checkpoint=run")]
    [True, True, False, True, False]
    """
    section, _, key = override.lstrip("+~").split("=")[0].partition(".")
    return section in OF_TRAINING or (section == "checkpoint" and key != "")  # a section there, a folder here
