"""What the training step and the evaluation ask of a sampler, and what its configuration says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Callable, ClassVar, Collection, Protocol, Sequence

import torch
from transformers import PretrainedConfig

from vidbridge.config.checks import require, require_positive
from vidbridge.errors import ConfigError
from vidbridge.policy.policy import Policy
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

Ended = Callable[[int, tuple[Completion, ...]], None]  # told the index of a prompt, and all of its completions
Progress = Callable[[float], None]  # told the share of the work done so far, in (0, 1]


class RolloutEngine(Protocol):
    """Samples completions. The result is a function of weights, prompts and seed, and of nothing else.

    The random numbers of a prompt come from ``seed`` and its index (None: 0, 1, ..): how prompts are cut into calls and
    dealt to ranks changes nothing.
    """

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Return ``group_size`` completions for each prompt, in order. RolloutError names the sample by its uid.

        Called by all ranks, each with prompts of its own, maybe none. ``ended`` is called once for each prompt, as soon
        as its last completion has ended.
        """

    def sync(self, policy: Policy) -> None:
        """Sample from the weights as they are now; called by all ranks."""


class Started(Protocol):
    """What a rollout elsewhere is sampling."""

    def finish(self) -> list[tuple[Completion, ...]]:
        """Wait, and return what ``generate`` would; called by all ranks."""

    def again(self) -> Collection[int]:
        """Return the indices that were sampled again, with newer weights than those of the start."""


class RolloutElsewhere(RolloutEngine, Protocol):
    """Samples while this process does something else. ``sync`` waits for what is being sampled."""

    def start(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> Started:
        """Begin what ``generate`` does. ``ended`` and ``progress`` are called from another thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """The bytes that an engine with weights of its own takes on a rank."""

    weights: float
    cache: float  # of keys and values
    sleeps: bool = False  # while nothing is sampled its weights are in the memory of the CPU, and there is no cache


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(ABC):
    """The keys of every rollout engine; each has a subclass, with its own keys, that its yaml's ``_target_`` names."""

    max_completion_tokens: int
    max_rows: int  # completions in flight on a rank
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: Sequence[str] = ()  # strings that end a completion, besides EOS
    ahead: int = 0  # 1: the next batch is sampled while this one is learnt from

    is_elsewhere: ClassVar[bool] = False  # whether it builds a RolloutElsewhere

    def __post_init__(self) -> None:
        require_positive("rollout", self, "max_rows")
        require(self.ahead in (0, 1), f"rollout.ahead must be 0 or 1, got {self.ahead}")
        told = "rollout.ahead=1 needs rollout=vllm_server: this engine works in the process that learns"
        require(self.ahead == 0 or self.is_elsewhere, told)
        try:
            self.sampling()
        except ValueError as error:
            raise ConfigError(f"rollout.{error}") from error

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_completion_tokens=self.max_completion_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            stop=tuple(self.stop),
        )

    def engine_memory(self, weights: float) -> EngineMemory | None:
        """Return what an engine with weights of its own takes, for a model of so many bytes; None: it has none."""
        return None

    def check_here(self) -> None:
        """ConfigError where the engine cannot run in this environment: asked before data and weights are read."""

    def check_model(self, model: PretrainedConfig, *, device: torch.device, local_ranks: int) -> None:
        """ConfigError where the engine cannot sample from such a model, on this device of each rank of a machine."""

    @abstractmethod
    def build(self, policy: Policy) -> RolloutEngine:
        """Return the engine; called by all ranks."""
