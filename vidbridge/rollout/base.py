"""What the training step and the evaluation ask of a sampler."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.types import Completion, EncodedPrompt

Progress = Callable[[float], None]  # told the share of the work done so far, in (0, 1]


class RolloutEngine(Protocol):
    """Samples completions. The result is a function of weights, prompts and seed, and of nothing else.

    The random numbers of a prompt come from ``seed`` and its number, which counts from ``first``: how prompts are cut
    into calls changes nothing.
    """

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        *,
        seed: int,
        first: int = 0,
        greedy: bool = False,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """``group_size`` completions for each prompt, in order; the likeliest token at every place if ``greedy``."""

    def sync(self, policy: QwenVLPolicy) -> None:
        """Sample from these weights from now on."""
