"""What train.py may be told, and what every command may be told (RunConfig): typed dataclasses.

As Hydra's schema (launch.py registers them) they refuse an unknown key, a wrong type or an unknown member;
``__post_init__`` refuses values that make no sense together.

A node typed ``Any`` carries a ``_target_``: its keys are the arguments of the class that it names, and are checked
against the signature of that class when the configuration is composed (instantiate.py).

Metadata of a field: ``FREE`` may differ when a run is resumed, as it changes none of its numbers; ``OF_THE_RUN`` is
taken from the run that evaluate.py evaluates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from omegaconf import MISSING

from vidbridge.algo.advantages import SCALES
from vidbridge.algo.mismatch import CORRECTIONS
from vidbridge.algo.objectives import OBJECTIVES
from vidbridge.algo.token_weights import LossNorm
from vidbridge.config.checks import (
    check_covered,
    check_reward,
    check_shares,
    require,
    require_known,
    require_positive,
    reward_weights,
)
from vidbridge.config.choices import Attention, Dtype, Resume, Schedule, Split, WandbMode
from vidbridge.config.prompt import PromptConfig
from vidbridge.errors import ConfigError
from vidbridge.media.frame_budget import FrameBudget

FREE, OF_THE_RUN = {"free": True}, {"of_the_run": True}
WANDB_TAG, WANDB_NAME = 64, 128  # characters of a tag; of a project and a group


@dataclass
class PathsConfig:
    cache: str = MISSING  # generated data and other things that can be made again


@dataclass
class ShapeConfig:
    """The numbers of a config.json, for plan=true where that file is not at hand and for ``random_weights``."""

    model_type: str = ""  # empty, as all of these: nothing is known without the file
    text: Dict[str, Any] = field(default_factory=dict)
    vision: Dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a Hugging Face id or a folder in the same format
    dtype: Dtype = Dtype.float32
    attn_implementation: Attention = Attention.sdpa  # of the vision tower; the language model's is policy/attention.py
    frozen: List[str] = field(default_factory=list)  # prefixes of module names that are not trained
    adapter: Any = None  # a LoraConfig once composed: policy/adapters.py; null: the weights themselves are trained
    gradient_checkpointing: bool = False
    device: str = field(default="auto", metadata=FREE)
    max_prompt_tokens: int = 8192  # a longer prompt is refused, never cut
    random_weights: bool = False  # ignore path: start from untrained weights of this shape (experiment=tiny_base)
    saved_dtype: Optional[Dtype] = None  # of the final model on disk; null: as trained
    shape: ShapeConfig = field(default_factory=ShapeConfig)


@dataclass
class FramesConfig:
    """A FrameBudget in the form that OmegaConf can merge into: that class is frozen."""

    fps: Optional[float] = None
    max_frames: int = MISSING
    min_pixels: int = MISSING
    max_pixels: int = MISSING
    total_pixels: Optional[int] = None  # of all frames of a video together; null: max_pixels each

    def __post_init__(self) -> None:
        try:
            self.budget()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def budget(self) -> FrameBudget:
        return FrameBudget(
            fps=self.fps,
            max_frames=self.max_frames,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            total_pixels=self.total_pixels,
        )


@dataclass
class TaskMixConfig:
    name: str = MISSING
    shares: Dict[str, float] = field(default_factory=dict)  # relative; only their ratios count
    size_frac: float = 1.0  # rows in one pass over the deck, as a part of the train rows of all tasks

    def __post_init__(self) -> None:
        check_shares("task_mix.shares", self.shares)
        require_positive("task_mix", self, "size_frac")


@dataclass
class AlgoConfig:
    """The algorithm of the learner: GrpoConfig or SftConfig, chosen by the yaml's defaults list."""

    router_aux_coef: float = 0.0  # of the loss that spreads tokens over the experts of a mixture (Qwen3-VL: 0.001)

    def __post_init__(self) -> None:
        coefficient = self.router_aux_coef
        require(0 <= coefficient < math.inf, f"algo.router_aux_coef must not be negative, got {coefficient}")


@dataclass
class GrpoConfig(AlgoConfig):
    group_size: int = 8
    ppo_epochs: int = 1  # updates on one rollout; 1 is strictly on-policy
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_beta: float = 0.0  # above 0 a frozen reference copy of the model is kept; of adapters none, they are turned off
    loss_norm: LossNorm = LossNorm.sequence
    objective: str = "clipped"  # one of algo.objectives.OBJECTIVES, or a function's dotted name
    advantage_scale: str = "group_std"  # one of algo.advantages.SCALES, or a function's dotted name
    correction: str = "none"  # one of algo.mismatch.CORRECTIONS, or a function's dotted name
    correction_cap: float = 2.0  # the largest weight of a token, or of a completion
    # nats a token between sampler and learner, for ten steps; null: any
    max_logprob_gap: Optional[float] = field(default=0.2, metadata=FREE)
    max_refills: int = 0  # times that degenerate groups are replaced by newly sampled ones (dynamic sampling)
    overlong_frac: float = 0.0  # the last part of max_completion_tokens, over which a penalty grows to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size >= 2, f"algo.group_size must be at least 2 to compare siblings, got {self.group_size}")
        require_positive("algo", self, "ppo_epochs", "clip_high")
        require(
            1 <= self.correction_cap < math.inf,
            f"algo.correction_cap must be at least 1, the weight of a sampler that is right, got {self.correction_cap}",
        )
        if self.max_logprob_gap is not None:
            require_positive("algo", self, "max_logprob_gap")
        require(0 < self.clip_low < 1, f"algo.clip_low must lie between 0 and 1, got {self.clip_low}")
        require(0 <= self.kl_beta < math.inf, f"algo.kl_beta must not be negative, got {self.kl_beta}")
        for key, table in (
            ("objective", OBJECTIVES),
            ("advantage_scale", SCALES),
            ("correction", CORRECTIONS),
        ):
            if "." not in getattr(self, key):
                require_known("function", getattr(self, key), table, f"algo.{key}")
        require(self.max_refills >= 0, f"algo.max_refills must not be negative, got {self.max_refills}")
        require(0 <= self.overlong_frac < 1, f"algo.overlong_frac must lie in [0, 1), got {self.overlong_frac}")


@dataclass
class SftStage:
    steps: int = MISSING
    shares: Dict[str, float] = field(default_factory=dict)  # task mix of this stage
    blind: List[str] = field(default_factory=list)  # tasks shown without their videos: conclude from given notes
    spoil: Dict[str, float] = field(default_factory=dict)  # rates of bad habits (shapes_world); empty: gold answers


@dataclass
class SftConfig(AlgoConfig):
    stages: List[SftStage] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.stages), "algo.stages needs at least one stage")
        for number, stage in enumerate(self.stages):
            require(stage.steps > 0, f"algo.stages[{number}].steps must be positive, got {stage.steps}")
            check_shares(f"algo.stages[{number}].shares", stage.shares)

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
        require_positive("optim", self, "lr", "max_grad_norm")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be two numbers in [0, 1), got {self.betas}",
        )
        require(0 <= self.warmup_frac < 1, f"optim.warmup_frac must lie in [0, 1), got {self.warmup_frac}")


@dataclass
class CheckpointConfig:
    every: int = 0  # steps between two checkpoints; 0: only when the run is told to stop
    keep_last: int = 2
    keep_best: bool = False  # and the one with the best score on val (eval.every)

    def __post_init__(self) -> None:
        require(self.every >= 0, f"checkpoint.every must be 0 (never) or positive, got {self.every}")
        require_positive("checkpoint", self, "keep_last")


@dataclass
class TrackConfig:
    wandb: WandbMode = WandbMode.auto
    project: str = "vidbridge"
    group: Optional[str] = None  # null: all that tells runs apart but the seed; a sweep sets its own
    tags: List[str] = field(default_factory=list)
    completions_every: int = 10  # steps between two tables of completions; 0: never
    completions_groups: int = 4  # groups shown in one table

    def __post_init__(self) -> None:
        if self.wandb is not WandbMode.off:
            self._check_wandb()
        require(self.completions_every >= 0, "track.completions_every must be 0 (never) or positive")
        require(self.completions_groups >= 0, "track.completions_groups must be 0 (none) or positive")

    def _check_wandb(self) -> None:
        """ConfigError for what W&B refuses: tags and project when a run begins, a group only when it is uploaded."""
        for tag in self.tags:
            told = f"track.tags: W&B takes tags of 1 to {WANDB_TAG} characters, got {len(tag)}: {tag!r}"
            require(0 < len(tag) <= WANDB_TAG, told)
        for name, text in (("project", self.project), ("group", self.group)):
            told = f"track.{name}: W&B takes 1 to {WANDB_NAME} characters, got {len(text or '')}: {text!r}"
            require(text is None or 0 < len(text) <= WANDB_NAME, told)
        bad = sorted(set(self.project) & set("/\\#?%:"))
        require(not bad, f"track.project: W&B takes no {' '.join(bad)} in it, got {self.project!r}")


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
        require(self.every >= 0, f"eval.every must be 0 (never) or positive, got {self.every}")
        require_positive("eval", self, "every_items", "num_items", "num_samples")
        check_reward("eval.reward", self.reward)


@dataclass
class RunConfig:
    """What every command is told."""

    seed: int = field(default=0, metadata=OF_THE_RUN)
    resume: Resume = field(default=Resume.never, metadata=FREE)
    nproc: int = field(default=1, metadata=FREE)  # ranks on this machine, one a GPU; torchrun says how many by itself
    hang_s: float = field(default=1800.0, metadata=FREE)  # a rank without a sign of life for so long ends the run
    allowed_targets: List[str] = field(default_factory=list)  # prefixes beside "vidbridge." for `_target_`
    paths: PathsConfig = field(default_factory=PathsConfig, metadata=FREE)
    model: ModelConfig = field(default_factory=ModelConfig, metadata=OF_THE_RUN)
    frames: FramesConfig = field(default=MISSING, metadata=OF_THE_RUN)
    prompt: PromptConfig = field(default_factory=PromptConfig, metadata=OF_THE_RUN)
    data: Any = field(default=MISSING, metadata=OF_THE_RUN)
    train_rows: Optional[int] = None  # of each task, the first so many, the same in every pass; null: all
    tasks: Dict[str, Any] = field(default_factory=dict, metadata=OF_THE_RUN)
    judge: Any = field(default=MISSING, metadata=OF_THE_RUN)
    rollout: Any = field(default=MISSING, metadata=OF_THE_RUN)  # a RolloutConfig once composed: rollout/base.py
    track: TrackConfig = field(default=MISSING, metadata=FREE)
    eval: EvalConfig = field(default=MISSING, metadata=OF_THE_RUN)

    def __post_init__(self) -> None:
        rows = self.train_rows
        require(rows is None or rows > 0, f"train_rows must be positive or null, got {rows}")
        require_positive("", self, "nproc", "hang_s")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")


@dataclass
class Config(RunConfig):
    """What train.py is told."""

    steps: Optional[int] = field(default=None, metadata=FREE)  # null: one pass over the deck, or all stages of SFT
    prompts_per_step: int = MISSING
    profile_steps: int = field(default=0, metadata=FREE)  # recorded by torch.profiler into trace_<step>.json
    diagnostics_every: int = 0  # steps between two looks at each task's gradient; 0: never
    plan: bool = False  # only say what the run would hold and cost, and whether it fits here
    task_mix: TaskMixConfig = MISSING
    reward: Dict[str, Any] = field(default_factory=dict)
    algo: AlgoConfig = MISSING
    optim: OptimConfig = MISSING
    engine: Any = MISSING  # an EngineConfig once composed: policy/engines/base.py
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps is None or self.steps > 0, f"steps must be positive or null, got {self.steps}")
        require_positive("", self, "prompts_per_step")
        require(self.profile_steps >= 0, f"profile_steps must not be negative, got {self.profile_steps}")
        require(self.diagnostics_every >= 0, f"diagnostics_every must be 0 or positive, got {self.diagnostics_every}")
        check_reward("reward", self.reward)
        for task in self.task_mix.shares:
            require_known("task", task, self.tasks, "task_mix.shares")
        if isinstance(self.algo, SftConfig):
            require(self.diagnostics_every == 0, "diagnostics_every looks at GRPO: with algo=sft set it to 0")
            require(
                self.steps is None or self.steps <= self.algo.num_steps,
                f"steps={self.steps}, but the stages of algo.stages end after {self.algo.num_steps}",
            )
            for number, stage in enumerate(self.algo.stages):
                for task in stage.shares:
                    require_known("task", task, self.tasks, f"algo.stages[{number}].shares")
        check_covered("reward", self.reward, [task for task, share in self.task_mix.shares.items() if share > 0])
        check_covered("eval.reward", self.eval.reward, self.tasks)
        # what both rewards name is a task that was not chosen; what one alone names is a slip of the pen
        for where, reward, other in (
            ("reward", self.reward, self.eval.reward),
            ("eval.reward", self.eval.reward, self.reward),
        ):
            for task in reward_weights(reward):
                require_known("task", task, [*self.tasks, *reward_weights(other)], where)
