"""One GRPO step, top to bottom. The rest of the package is what these calls are made of.

    samples -> prompts -> completions -> rewards -> advantages -> loss -> new weights
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Iterator, Mapping, Sequence

import torch

from vidbridge.algo.advantages import degenerate, group_advantages, overlong_penalty
from vidbridge.algo.loss import grpo_loss, token_weights
from vidbridge.config import GrpoConfig
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.base import RolloutEngine
from vidbridge.scoring import reward_metrics, score_groups
from vidbridge.text.tags import read_tags
from vidbridge.types import Batch, Group, StepResult

_REFILLS_FROM = 10**6  # steps down the deck: farther than any run goes


class GrpoStep:
    """``step(n)`` samples, scores and learns from the n-th batch; it depends on (weights, seed, n) alone."""

    def __init__(
        self,
        *,
        mixture: Mixture,
        processor: Processor,
        rollout: RolloutEngine,
        reward: GatedSum,
        policy: QwenVLPolicy,
        algo: GrpoConfig,
        max_completion_tokens: int,
        last: int | None = None,  # step that there will be; None: not known
        bad: BadSamples | None = None,
    ) -> None:
        self.mixture, self.rollout = mixture, rollout
        self.reward, self.policy, self.algo = reward, policy, algo
        self.max_completion_tokens = max_completion_tokens
        self.loader = Loader(mixture.tasks, processor, bad)
        self.loaded = Prefetch(self._load, last=last)

    def __call__(self, step: int) -> StepResult:
        clock = Clock()
        with clock("data"):
            prompts = self.loaded(step)
        groups = self._sample(prompts, clock, seed=self._seed(step))
        # of these, before any is replaced: the policy as it is
        metrics = {**reward_metrics(groups), **rollout_metrics(groups)}
        if self.algo.max_refills:
            groups, more = self._refilled(groups, step, clock)
            metrics |= more
        with clock("learner"):
            penalty = overlong_penalty(lengths_of(groups), self.max_completion_tokens, self.algo.overlong_frac)
            metrics["rollout/overlong_penalty"] = penalty.mean().item()
            rewards = rewards_of(groups, self.algo.group_size) + penalty
            advantages = group_advantages(rewards, trainable(groups), self.algo.advantage_scale)
            metrics |= self._learn(groups, advantages.flatten())
        return StepResult(metrics={**metrics, **self.loader.metrics(), **clock.metrics()}, groups=tuple(groups))

    def _load(self, step: int, limit: int | None = None) -> list[Loaded]:
        """The samples of the batch, or its first ``limit``, with their videos read."""
        return self.loader.load(self.mixture.batch(step)[:limit])

    def _seed(self, step: int) -> int:
        return self.mixture.seed * 1_000_003 + step

    def _sample(self, prompts: Sequence[Loaded], clock: Clock, *, seed: int) -> list[Group]:
        """A scored group for each prompt."""
        with clock("rollout"):
            self.rollout.sync(self.policy)
            siblings = self.rollout.generate([encoded for _, _, encoded in prompts], self.algo.group_size, seed=seed)
            groups = [
                Group(sample=sample, prompt=prompt, encoded=encoded, completions=completions)
                for (sample, prompt, encoded), completions in zip(prompts, siblings, strict=True)
            ]
        with clock("reward"):
            return score_groups(groups, self.reward)

    def _refilled(self, groups: list[Group], step: int, clock: Clock) -> tuple[list[Group], dict[str, float]]:
        """Dynamic sampling: other groups in the place of those whose siblings all earned the same.

        DAPO (arXiv 2503.14476) equation 11, at most ``max_refills`` times; what is idle then stays. Refills come from
        far down the same endless deck, so that they too are a function of (seed, step).
        """
        groups, num_extra = list(groups), 0
        for refill in range(1, self.algo.max_refills + 1):
            places = [place for place, group in enumerate(groups) if is_idle(group)]
            if not places:
                break
            at = refill * _REFILLS_FROM + step
            with clock("data"):
                prompts = self._load(at, limit=len(places))
            fresh = self._sample(prompts, clock, seed=self._seed(at))
            num_extra += len(fresh)
            for place, group in zip(places, (group for group in fresh if not is_idle(group))):
                groups[place] = group
        idle_frac = sum(map(is_idle, groups)) / len(groups)
        return groups, {"rollout/extra_groups": float(num_extra), "rollout/idle_frac": idle_frac}

    def _learn(self, groups: list[Group], advantages: torch.Tensor) -> dict[str, float]:
        """``ppo_epochs`` updates on these completions; advantages [N]."""
        # of all groups, so that leaving some out changes no denominator
        weights = token_weights(loss_mask(groups), self.algo.loss_norm, self.max_completion_tokens)
        teaches = advantages.view(len(groups), -1).ne(0).any(dim=1) | (trainable(groups) & (self.algo.kl_beta > 0))
        rows = teaches.repeat_interleave(self.algo.group_size)
        groups = [group for group, counts in zip(groups, teaches.tolist()) if counts]
        batches = list(self.policy.micro_batches(groups, advantages[rows], weights[rows]))
        metrics = Means()
        for epoch in range(self.algo.ppo_epochs):
            for place, batch in enumerate(batches):
                batch = batch.to(self.policy.module.device)
                num_tokens = int(batch.loss_mask.sum())
                logprobs, entropy = self.policy.logprobs(batch)
                if epoch == 0:
                    # what this forward gives is the policy that sampled: no extra forward for old_logprobs
                    batch = replace(
                        batch, old_logprobs=logprobs.detach(), ref_logprobs=self.policy.ref_logprobs(batch)
                    )
                    batches[place] = batch
                    metrics.add({"policy/entropy": masked_mean(entropy, batch)}, weight=num_tokens)
                    if batch.sampler_logprobs is not None:
                        gap = (logprobs.detach() - batch.sampler_logprobs).abs()  # float noise, unless the two disagree
                        metrics.add({"rollout/logprob_gap": masked_mean(gap, batch)}, weight=num_tokens)
                        metrics.add({"rollout/logprob_gap_max": (gap * batch.loss_mask).max().item()})
                out = grpo_loss(
                    logprobs,
                    old_logprobs=batch.old_logprobs,
                    ref_logprobs=batch.ref_logprobs,
                    advantages=batch.advantages,
                    loss_mask=batch.loss_mask,
                    token_weights=batch.token_weights,
                    clip_low=self.algo.clip_low,
                    clip_high=self.algo.clip_high,
                    kl_beta=self.algo.kl_beta,
                    ratio_level=self.algo.ratio_level,
                )
                self.policy.backward(out.loss)
                metrics.add({"policy/loss": out.loss.item() * len(batches)})
                for name, value in out.metrics.items():
                    # in the first epoch the ratio is 1 and nothing can be clipped: it would dilute those that follow
                    idle = epoch == 0 and name.startswith("policy/clip_")
                    metrics.add({name: value}, weight=0 if idle else num_tokens)
            metrics.add(self.policy.update())
        return metrics.result()


def rewards_of(groups: Sequence[Group], group_size: int) -> torch.Tensor:
    """Totals [P, G] float64; a group that could not be scored reads 0 and is masked by ``trainable``."""
    return torch.tensor(
        [[reward.total for reward in group.rewards] or [0.0] * group_size for group in groups], dtype=torch.float64
    )


def lengths_of(groups: Sequence[Group]) -> torch.Tensor:
    """Tokens of each completion, [P, G] int64."""
    return torch.tensor([[len(done.token_ids) for done in group.completions] for group in groups])


def is_idle(group: Group) -> bool:
    """Nothing can be learnt from it: all siblings earned the same, or they could not be scored."""
    return not group.trainable or bool(degenerate(rewards_of([group], len(group.completions))))


def trainable(groups: Sequence[Group]) -> torch.Tensor:
    """[P] bool"""
    return torch.tensor([group.trainable for group in groups])


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the completions look like, whatever they earned, and how many groups earned all the same."""
    completions = [completion for group in groups for completion in group.completions]
    tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "rollout/tokens": float(tokens),
        "rollout/completion_tokens": tokens / len(completions),
        "rollout/truncated_frac": sum(not completion.finished for completion in completions) / len(completions),
        "rollout/degenerate_frac": sum(group.trainable and is_idle(group) for group in groups) / len(groups),
        "rollout/well_formed_frac": sum(read_tags(done.text) is not None for done in completions) / len(completions),
    }


def masked_mean(values: torch.Tensor, batch: Batch) -> float:
    """Mean over the sampled tokens of values [N, T]."""
    return (values[batch.loss_mask].sum() / batch.loss_mask.sum().clamp(min=1)).item()


@dataclass
class Clock:
    """Seconds spent in each stage of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        stages = {f"time/{stage}_s": seconds for stage, seconds in self.seconds.items()}
        return {**stages, "time/step_s": sum(self.seconds.values())}


class Means:
    """The weighted mean of each metric over the calls that reported it; of a ``.._max`` the largest value.

    Weighed by its tokens, the parts of a batch give the metric of the batch, however it is cut. 0 where nothing weighs.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float], weight: float = 1.0) -> None:
        for name, value in metrics.items():
            self._values[name].append((value, weight))

    def result(self) -> dict[str, float]:
        return {name: _merged(name, values) for name, values in self._values.items()}


def _merged(name: str, values: Sequence[tuple[float, float]]) -> float:
    if name.endswith("_max"):
        return max(value for value, _ in values)
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else 0.0
