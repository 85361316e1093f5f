"""Completions that are written beforehand: a step or a reward can be tried without a model that samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.base import Ended, Progress, RolloutConfig
from vidbridge.types import Completion, EncodedPrompt, SamplingParams


@dataclass(frozen=True, kw_only=True)
class ScriptedConfig(RolloutConfig):
    texts: Sequence[str]

    def build(self, policy: Policy) -> ScriptedRollout:
        return ScriptedRollout(policy.processor, self.texts)


class ScriptedRollout:
    """Gives the n-th completion of a batch the n-th text, from the first one again after the last.

    The n-th completion is the (n mod G)-th of the prompt with the index n div G. It is cut, as a sampled one is, after
    ``max_completion_tokens``.
    """

    def __init__(self, processor: Processor, texts: Sequence[str]) -> None:
        self.processor, self.texts = processor, texts

    def sync(self, policy: Policy) -> None:
        """Do nothing: no weight changes what is written here."""

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
        groups = []
        for index in range(len(prompts)) if indices is None else indices:
            numbers = range(index * group_size, (index + 1) * group_size)
            groups.append(tuple(self._completion(number, sampling.max_completion_tokens) for number in numbers))
            if ended is not None:
                ended(index, groups[-1])
        return groups

    def _completion(self, number: int, limit: int) -> Completion:
        ids = self.processor.encode_completion(self.texts[number % len(self.texts)])
        text = self.processor.decode(ids[:limit])
        return Completion(text=text, token_ids=ids[:limit], finished=len(ids) <= limit)
