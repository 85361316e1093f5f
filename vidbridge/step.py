"""One GRPO step, top to bottom. The rest of the package is what these calls are made of.

    samples -> prompts -> completions -> rewards -> advantages -> loss -> new weights
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Collection, Iterator, Mapping, Sequence

import torch

from vidbridge.algo.advantages import degenerate, group_advantages, overlong_penalty
from vidbridge.algo.objectives import grpo_loss, token_weights
from vidbridge.config.schema import GrpoConfig
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.diagnostics.gradients import Diagnostics, Probe
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import Scorer, reward_metrics
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.text.tags import read_tags
from vidbridge.types import Batch, Completion, Group, StepResult

_REFILLS_FROM = 10**6  # steps down the deck: farther than any run goes

Prompts = Mapping[int, Loaded]  # by their places in the batch


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
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self.mixture, self.processor, self.rollout = mixture, processor, rollout
        self.reward, self.policy, self.algo = reward, policy, algo
        self.max_completion_tokens, self.diagnostics = max_completion_tokens, diagnostics
        self.loader = Loader(mixture.tasks, processor, bad)
        self.prompts = Prefetch(self._prompts, last=last)

    def __call__(self, step: int) -> StepResult:
        clock = Clock()
        with clock("data"):
            with collectives.fail_together():
                prompts = self.prompts(step)
            data_metrics = self.loader.report(prompts.values())
        groups = self._sample(prompts, clock, seed=self._seed(step))
        # of these, before any is replaced: the policy as it is
        metrics = {**data_metrics, **reward_metrics(groups), **rollout_metrics(groups)}
        if self.algo.max_refills:
            groups, more = self._refilled(groups, step, clock, own=prompts.keys())
            metrics |= more
        metrics |= self.reward.metrics()
        with clock("learner"):
            penalty = overlong_penalty(lengths_of(groups), self.max_completion_tokens, self.algo.overlong_frac)
            metrics["rollout/overlong_penalty"] = penalty.mean().item()
            rewards = rewards_of(groups, self.algo.group_size) + penalty
            advantages = group_advantages(rewards, scored(groups), self.algo.advantage_scale)
            probe = self.diagnostics.at(step) if self.diagnostics else None
            metrics |= self._learn(groups, advantages, own=prompts.keys(), probe=probe)
        if probe is not None:
            with clock("diagnostics"):
                metrics |= probe.metrics(groups, advantages, metrics.get("policy/grad_norm"))
        metrics |= collectives.all_reduce_max(clock.metrics())
        return StepResult(metrics=metrics, groups=tuple(groups), advantages=advantages.tolist())

    def _prompts(self, step: int) -> Prompts:
        """Those of the batch that this rank works on."""
        return self.loader.load(self.loader.own(self.mixture.batch(step)))

    def _seed(self, step: int) -> int:
        return self.mixture.seed * 1_000_003 + step

    def _sample(self, prompts: Prompts, clock: Clock, *, seed: int) -> list[Group]:
        """A scored group for each prompt of every rank, in the order of the batch; those of other ranks are light."""
        with clock("sync"):
            self.rollout.sync(self.policy)
        with collectives.fail_together(), Scorer(self.reward) as scorer:

            def ended(place: int, completions: tuple[Completion, ...]) -> None:
                of = prompts[place]
                group = Group(sample=of.sample, prompt=of.prompt, encoded=of.encoded, completions=completions)
                scorer.add(place, group)

            with clock("rollout"):  # a group goes to the judge while others are still decoded
                self.rollout.generate(
                    [each.encoded for each in prompts.values()],
                    self.algo.group_size,
                    seed=seed,
                    places=list(prompts),
                    ended=ended,
                )
            with clock("reward"):
                groups = scorer.groups()
        return collectives.gather_by_index(groups, lighten=Group.light)

    def _refilled(
        self, groups: list[Group], step: int, clock: Clock, own: Collection[int]
    ) -> tuple[list[Group], dict[str, float]]:
        """Dynamic sampling: other groups in the place of those whose siblings all earned the same.

        DAPO (arXiv 2503.14476) equation 11, at most ``max_refills`` times; what is idle then stays. Refills come from
        far down the same endless deck, so that they too are a function of (seed, step). A place stays with its rank.
        """
        groups, num_extra = list(groups), 0
        for refill in range(1, self.algo.max_refills + 1):
            places = [place for place, group in enumerate(groups) if is_idle(group)]
            if not places:
                break
            at = refill * _REFILLS_FROM + step
            with clock("data"), collectives.fail_together():
                samples = enumerate(self.mixture.batch(at)[: len(places)])
                prompts = self.loader.load({nth: sample for nth, sample in samples if places[nth] in own})
            fresh = self._sample(prompts, clock, seed=self._seed(at))
            num_extra += len(fresh)
            for place, group in zip(places, fresh, strict=True):
                if not is_idle(group):
                    groups[place] = group
        idle_frac = sum(map(is_idle, groups)) / len(groups)
        return groups, {"rollout/extra_groups": float(num_extra), "rollout/idle_frac": idle_frac}

    def _learn(
        self, groups: list[Group], advantages: torch.Tensor, own: Collection[int], probe: Probe | None
    ) -> dict[str, float]:
        """``ppo_epochs`` updates on these completions, the ``own`` groups here; advantages [P, G]."""
        # of all groups, so that leaving some out, or to other ranks, changes no denominator
        weights = token_weights(loss_mask(groups), self.algo.loss_norm, self.max_completion_tokens)
        teaches = advantages.ne(0).any(dim=1) | (trainable(groups) & (self.algo.kl_beta > 0))
        here = sorted(own)
        batches_of = partial(
            self.policy.micro_batches,
            [groups[place] for place in here],
            advantages[here].flatten(),
            weights.view(len(groups), self.algo.group_size, -1)[here].flatten(0, 1),
        )
        if probe is None:
            batches = batches_of(teaches=teaches[here].tolist())
        else:
            batches = probe.batches(groups, teaches, lambda mask: batches_of(teaches=mask[here].tolist()))
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
                with probe.reading(place) if probe and epoch == 0 else nullcontext():
                    self.policy.backward(out.loss)
                metrics.add({"policy/loss": out.loss.item() * len(batches) * collectives.world_size()})
                if num_tokens == 0:  # masked
                    continue
                if epoch == 0:
                    metrics.add(sampling_metrics(batch, entropy), weight=num_tokens)
                for name, value in out.metrics.items():
                    # in the first epoch the ratio is 1 and nothing can be clipped: it would dilute those that follow
                    idle = epoch == 0 and name.startswith("policy/clip_")
                    metrics.add({name: value}, weight=0 if idle else num_tokens)
            metrics.add(self.policy.update())
        return metrics.result()


def rewards_of(groups: Sequence[Group], group_size: int) -> torch.Tensor:
    """Totals [P, G] float64; what could not be scored reads nan, or 0 in a whole group, and is masked by ``scored``."""
    return torch.tensor(
        [[reward.total for reward in group.rewards] or [0.0] * group_size for group in groups], dtype=torch.float64
    )


def lengths_of(groups: Sequence[Group]) -> torch.Tensor:
    """Tokens of each completion, [P, G] int64."""
    return torch.tensor([[len(done.token_ids) for done in group.completions] for group in groups])


def is_idle(group: Group) -> bool:
    """Nothing can be learnt from it: all siblings earned the same, or they could not be scored."""
    return not group.trainable or bool(degenerate(rewards_of([group], len(group.completions)), scored([group])))


def trainable(groups: Sequence[Group]) -> torch.Tensor:
    """[P] bool"""
    return torch.tensor([group.trainable for group in groups])


def scored(groups: Sequence[Group]) -> torch.Tensor:
    """[P, G] bool"""
    return torch.tensor([group.scored for group in groups])


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


def sampling_metrics(batch: Batch, entropy: torch.Tensor) -> dict[str, float]:
    """How sure the policy was, and how far the sampler's log-probabilities are from the learner's."""
    metrics = {"policy/entropy": masked_mean(entropy, batch)}
    if batch.sampler_logprobs is not None:
        assert batch.old_logprobs is not None
        gap = (batch.old_logprobs - batch.sampler_logprobs).abs()  # float noise, unless the two disagree
        metrics["rollout/logprob_gap"] = masked_mean(gap, batch)
        metrics["rollout/logprob_gap_max"] = (gap * batch.loss_mask).max().item()
    return metrics


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
    """The weighted mean of each metric over the calls that reported it, on any rank; of a ``.._max`` the largest value.

    Weighed by its tokens, the parts of a batch give the metric of the batch, however it is cut. 0 where nothing weighs.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float], weight: float = 1.0) -> None:
        for name, value in metrics.items():
            self._values[name].append((value, weight))

    def result(self) -> dict[str, float]:
        everyones: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for values_of_rank in collectives.all_gather(dict(self._values)):
            for name, values in values_of_rank.items():
                everyones[name] += values
        return {name: _merged(name, values) for name, values in everyones.items()}


def _merged(name: str, values: Sequence[tuple[float, float]]) -> float:
    if name.endswith("_max"):
        return max(value for value, _ in values)
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else 0.0
