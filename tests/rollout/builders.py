"""A rollout that always samples alike."""

from dataclasses import dataclass, replace
from typing import Any

from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import RolloutEngine
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import SamplingParams


@dataclass(frozen=True)
class Sampler:
    engine: RolloutEngine
    sampling: SamplingParams

    def generate(self, prompts: Any, group_size: int, *, greedy: bool = False, **options: Any) -> Any:
        return self.engine.generate(prompts, group_size, replace(self.sampling, greedy=greedy), **options)


def sampler(policy: Policy, *, max_rows: int = 128, **sampling: Any) -> Sampler:
    return Sampler(SharedPrefixRollout(policy, max_rows=max_rows), SamplingParams(**sampling))
