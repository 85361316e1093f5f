"""What a run may be told: typed dataclasses, checked when Hydra composes and again across fields.

Three nets: as Hydra's schema (launch.py registers them) they refuse an unknown key, a wrong type or an
unknown member; ``__post_init__`` refuses values that make no sense together; the builder refuses
``_target_`` names outside the allowed prefixes. Below the builder only these dataclasses are seen.

Nodes typed ``Any`` carry a ``_target_``: their keys are the arguments of the class they name, checked
by the builder against its signature. Enum members are spelt as in the yaml because OmegaConf reads names.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, Iterable, List, Optional

from omegaconf import MISSING

from vidbridge.algo.advantages import AdvantageScale
from vidbridge.algo.loss import LossNorm, RatioLevel

REWARD_PARTS = ("name", "gates", "terms")  # every other key of a reward node is a task with its weights


class ConfigError(ValueError):
    """The configuration asks for something that cannot be; the message is for the user."""


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(str, Enum):
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    eager = "eager"


class Schedule(str, Enum):
    linear = "linear"  # to zero at the last step
    constant = "constant"


class Split(str, Enum):
    train = "train"
    val = "val"
    test = "test"


class Prompting(str, Enum):
    thinking = "thinking"  # <think> .. </think>, then <answer> .. </answer>, as in training
    direct = "direct"  # the bare question; all of the reply is the answer


class WandbMode(str, Enum):
    auto = "auto"  # online when a key is configured, offline otherwise
    offline = "offline"
    off = "off"


@dataclass
class PathsConfig:
    cache: str = MISSING  # generated data and other things that can be made again


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a Hugging Face id or a folder in the same format
    checkpoint: Optional[str] = None  # of evaluate.py, which says checkpoint=..: vidbridge/runs.py; null: path as it is
    dtype: Dtype = Dtype.float32
    attn_implementation: Attention = Attention.sdpa  # of the vision tower; the language model's is policy/attention.py
    frozen: List[str] = field(default_factory=list)  # prefixes of module names that are not trained
    gradient_checkpointing: bool = False
    device: str = "auto"
    max_prompt_tokens: int = 8192  # a longer prompt is refused, never cut
    random_weights: bool = False  # ignore path: start from an untrained embedded model (experiment=tiny_base)
    saved_dtype: Optional[Dtype] = None  # of the final model on disk; null: as trained


@dataclass
class FramesConfig:
    """Read into media.frames.FrameBudget (frozen, which OmegaConf cannot merge into); checked there."""

    fps: Optional[float] = None
    max_frames: int = MISSING
    min_pixels: int = MISSING
    max_pixels: int = MISSING
    total_pixels: Optional[int] = None  # of all frames of a video together; null: max_pixels each


@dataclass
class TaskMixConfig:
    name: str = MISSING
    shares: Dict[str, float] = field(default_factory=dict)  # relative; only their ratios count
    size_frac: float = 1.0  # rows in one pass over the deck, as a part of the train rows of all tasks

    def __post_init__(self) -> None:
        _require(any(self.shares.values()), "task_mix.shares must give at least one task a share above 0")
        for task, share in self.shares.items():
            _require(0 <= share < math.inf, f"task_mix.shares.{task} must not be negative, got {share}")
        _require_positive("task_mix", self, "size_frac")


@dataclass
class RolloutConfig:
    _target_: str = MISSING
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: List[str] = field(default_factory=list)  # strings that end a completion, besides EOS
    max_completion_tokens: int = MISSING
    max_rows: int = MISSING  # sequences decoded together; a group is not divided

    def __post_init__(self) -> None:
        _require_positive("rollout", self, "temperature", "max_completion_tokens", "max_rows")
        _require(0 < self.top_p <= 1, f"rollout.top_p must lie in (0, 1], got {self.top_p}")
        _require(0 <= self.min_p < 1, f"rollout.min_p must lie in [0, 1), got {self.min_p}")
        _require(all(self.stop), "rollout.stop must not hold an empty string: every completion would end at once")


@dataclass
class AlgoConfig:
    """What the learner optimises: GrpoConfig or SftConfig, chosen by the yaml's defaults list."""


@dataclass
class GrpoConfig(AlgoConfig):
    group_size: int = 8
    ppo_epochs: int = 1  # updates on one rollout; 1 is strictly on-policy
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_beta: float = 0.0  # above 0 a frozen reference copy of the model is kept
    loss_norm: LossNorm = LossNorm.sequence
    ratio_level: RatioLevel = RatioLevel.token
    advantage_scale: AdvantageScale = AdvantageScale.group_std
    max_refills: int = 0  # times that degenerate groups are replaced by newly sampled ones (dynamic sampling)
    overlong_frac: float = 0.0  # the last part of max_completion_tokens, over which a penalty grows to 1

    def __post_init__(self) -> None:
        _require(self.group_size >= 2, f"algo.group_size must be at least 2 to compare siblings, got {self.group_size}")
        _require_positive("algo", self, "ppo_epochs", "clip_high")
        _require(0 < self.clip_low < 1, f"algo.clip_low must lie between 0 and 1, got {self.clip_low}")
        _require(0 <= self.kl_beta < math.inf, f"algo.kl_beta must not be negative, got {self.kl_beta}")
        _require(self.max_refills >= 0, f"algo.max_refills must not be negative, got {self.max_refills}")
        _require(0 <= self.overlong_frac < 1, f"algo.overlong_frac must lie in [0, 1), got {self.overlong_frac}")


@dataclass
class SftStage:
    steps: int = MISSING
    shares: Dict[str, float] = field(default_factory=dict)  # task mix of this stage
    blind: List[str] = field(default_factory=list)  # tasks shown without their videos: conclude from given notes
    spoil: Dict[str, float] = field(default_factory=dict)  # rates of data.spoil.Spoiler; empty: gold answers


@dataclass
class SftConfig(AlgoConfig):
    stages: List[SftStage] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(bool(self.stages), "algo.stages needs at least one stage")
        for number, stage in enumerate(self.stages):
            _require(stage.steps > 0, f"algo.stages[{number}].steps must be positive, got {stage.steps}")
            _require(bool(stage.shares), f"algo.stages[{number}].shares must name at least one task")

    @property
    def num_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


@dataclass
class OptimConfig:
    lr: float = MISSING
    betas: List[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.linear
    warmup_frac: float = 0.0  # of all steps
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("optim", self, "lr", "max_grad_norm")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be two numbers in [0, 1), got {self.betas}",
        )
        _require(0 <= self.warmup_frac < 1, f"optim.warmup_frac must lie in [0, 1), got {self.warmup_frac}")


@dataclass
class EngineConfig:
    _target_: str = MISSING
    max_packed_tokens: int = MISSING  # in one forward and backward pass; a longer group goes alone
    stage: Optional[int] = None  # DeepSpeedEngine alone: 2 divides gradients and optimizer, 3 the weights too
    offload: Optional[bool] = None  # DeepSpeedEngine alone: weights and optimizer wait in the memory of the CPU

    def __post_init__(self) -> None:
        _require_positive("engine", self, "max_packed_tokens")


class Resume(str, Enum):
    never = "never"  # the folder of the run must be a new one
    auto = "auto"  # go on from the newest good checkpoint in it, or start if there is none


@dataclass
class CheckpointConfig:
    every: int = 0  # steps between two checkpoints; 0: only when the run is told to stop
    keep_last: int = 2
    keep_best: bool = False  # and the one with the best score on val (eval.every)

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"checkpoint.every must be 0 (never) or positive, got {self.every}")
        _require_positive("checkpoint", self, "keep_last")


@dataclass
class TrackConfig:
    wandb: WandbMode = WandbMode.auto
    project: str = "vidbridge"
    group: Optional[str] = None  # null: all that tells runs apart but the seed; a sweep sets its own
    tags: List[str] = field(default_factory=list)
    completions_every: int = 10  # steps between two tables of completions; 0: never
    completions_groups: int = 4  # groups shown in one table

    def __post_init__(self) -> None:
        _require(self.completions_every >= 0, "track.completions_every must be 0 (never) or positive")
        _require(self.completions_groups >= 0, "track.completions_groups must be 0 (none) or positive")


@dataclass
class EvalConfig:
    every: int = 0  # steps between two looks at the val split while training; 0: never
    every_items: int = 16  # items of each task in such a look
    before: bool = True  # and not only after training; what is the same for many runs need not be seen in each
    split: Split = Split.test
    num_items: int = 64  # items of each task before and after training
    num_samples: int = 4  # completions of each item at temperature 1
    reward: Dict[str, Any] = field(default_factory=dict)  # always the same, so that ablations can be compared

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"eval.every must be 0 (never) or positive, got {self.every}")
        _require_positive("eval", self, "every_items", "num_items", "num_samples")
        check_reward("eval.reward", self.reward)


@dataclass
class BenchmarkConfig:
    """What evaluate.py asks the model. What is empty or null is as in training."""

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
        _require(self.num_samples >= 0, f"benchmark.num_samples must be 0 or positive, got {self.num_samples}")
        _require(self.greedy or self.num_samples > 0, "benchmark: with greedy=false num_samples must be positive")
        for name in ("max_prompt_tokens", "max_completion_tokens", "num_items"):
            if getattr(self, name) is not None:
                _require_positive("benchmark", self, name)
        if self.reward:
            check_reward("benchmark.reward", self.reward)


@dataclass
class AgreementConfig:
    """Of evaluate.py judge_agreement; the first judge is that of the run."""

    completions: Optional[str] = None  # completions.jsonl of a run
    judge: Any = None  # the second judge: +judge@agreement.judge=openai


@dataclass
class Config:
    seed: int = 0
    steps: Optional[int] = None  # one batch of prompts each; null: one pass over the deck, or all stages of SFT
    prompts_per_step: int = MISSING
    resume: Resume = Resume.never
    nproc: int = 1  # ranks on this machine, one a GPU; under torchrun or deepspeed these say how many there are
    hang_s: float = 1800.0  # without a sign of life for so long, a rank prints where it is and the run ends
    profile_steps: int = 0  # steps recorded by torch.profiler into trace_<step>.json
    diagnostics_every: int = 0  # steps between two looks at each task's gradient (vidbridge/diagnostics.py); 0: never
    plan: bool = False  # only say what the run would hold and cost, and whether it fits here (vidbridge/plan.py)
    allowed_targets: List[str] = field(default_factory=list)  # prefixes beside "vidbridge." for `_target_`
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    data: Any = MISSING
    tasks: Dict[str, Any] = field(default_factory=dict)
    task_mix: TaskMixConfig = MISSING
    reward: Dict[str, Any] = field(default_factory=dict)
    judge: Any = MISSING
    rollout: RolloutConfig = MISSING
    algo: AlgoConfig = MISSING
    optim: OptimConfig = MISSING
    engine: EngineConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = MISSING
    eval: EvalConfig = MISSING
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    agreement: AgreementConfig = field(default_factory=AgreementConfig)

    def __post_init__(self) -> None:
        _require(self.steps is None or self.steps > 0, f"steps must be positive or null, got {self.steps}")
        _require_positive("", self, "prompts_per_step", "nproc", "hang_s")
        _require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        _require(self.profile_steps >= 0, f"profile_steps must not be negative, got {self.profile_steps}")
        _require(self.diagnostics_every >= 0, f"diagnostics_every must be 0 or positive, got {self.diagnostics_every}")
        check_reward("reward", self.reward)
        known = list(self.tasks)
        for task in self.task_mix.shares:
            require_known("task", task, known, "task_mix.shares")
        if isinstance(self.algo, SftConfig):
            _require(self.diagnostics_every == 0, "diagnostics_every looks at GRPO: with algo=sft set it to 0")
            _require(
                self.steps is None or self.steps <= self.algo.num_steps,
                f"steps={self.steps}, but the stages of algo.stages end after {self.algo.num_steps}",
            )
            for number, stage in enumerate(self.algo.stages):
                for task in stage.shares:
                    require_known("task", task, known, f"algo.stages[{number}].shares")
        trained = [task for task, share in self.task_mix.shares.items() if share > 0]
        self._check_covered("reward", self.reward, trained, other=self.eval.reward)
        self._check_covered("eval.reward", self.eval.reward, known, other=self.reward)

    def _check_covered(self, where: str, reward: Dict[str, Any], tasks: Iterable[str], other: Dict[str, Any]) -> None:
        """Every task named in a reward exists, and every task that will be scored is named.

        What the ``other`` reward names too is a task that was not chosen, not a slip of the pen.
        """
        for task in reward_weights(reward):
            require_known("task", task, [*self.tasks, *reward_weights(other)], where)
        for task in tasks:
            _require(task in reward, f"{where} has no weights for the task '{task}'; add {where}.{task}.<term>")


def reward_weights(reward: Dict[str, Any]) -> Dict[str, Dict[str, float]]:
    """The blocks of a reward node that are weights by task.

    >>> reward_weights({"name": "x", "gates": {}, "terms": {"choice": {}}, "qa": {"choice": 1.0}})
    {'qa': {'choice': 1.0}}
    """
    return {key: value for key, value in reward.items() if key not in REWARD_PARTS}


def check_reward(where: str, reward: Dict[str, Any]) -> None:
    """Refuse a reward node that is not gates, terms, and numbers by task and term; tasks are checked by Config."""
    for part in ("gates", "terms"):
        _require(isinstance(reward.get(part), dict), f"{where}.{part} must name its rewards, each with a _target_")
    terms = [term for term, spec in reward["terms"].items() if spec is not None]  # null takes one out
    for task, weights in reward_weights(reward).items():
        _require(isinstance(weights, dict), f"{where}.{task} must be weights by term, got {weights!r}")
        for term, weight in weights.items():
            require_known("term", term, terms, f"{where}.{task}")
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
            _require(is_number, f"{where}.{task}.{term} must be a finite number, got {weight!r}")


def require_known(kind: str, name: str, known: Iterable[str], where: str) -> None:
    """ConfigError unless `name` is one of `known`, with the nearest spelling and the whole list."""
    known = list(dict.fromkeys(known))
    if name not in known:
        raise ConfigError(f"{where}: there is no {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    >>> did_you_mean("captoin", ["qa", "caption"])
    " Did you mean 'caption'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(where: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        key = f"{where}.{name}" if where else name
        _require(0 < value < math.inf, f"{key} must be positive and finite, got {value}")
