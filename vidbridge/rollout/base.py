"""What the training step and the evaluation ask of a sampler."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from vidbridge.policy.policy import Policy
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

Ended = Callable[[int, tuple[Completion, ...]], None]  # told the place of a prompt, and all of its completions
Progress = Callable[[float], None]  # told the share of the work done so far, in (0, 1]


class RolloutEngine(Protocol):
    """Samples completions. The result is a function of weights, prompts and seed, and of nothing else.

    The random numbers of a prompt come from ``seed`` and its place (None: 0, 1, ..): how prompts are cut into calls and
    dealt to ranks changes nothing. A rank generates without the others.
    """

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        places: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Return ``group_size`` completions for each prompt, in order.

        ``ended`` is called once for each prompt, as soon as its last completion has ended.
        """

    def sync(self, policy: Policy) -> None:
        """Sample from the weights as they are now; called by all ranks."""
