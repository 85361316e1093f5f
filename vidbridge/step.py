"""One GRPO step, top to bottom. The rest of the package is what these calls are made of.

    samples -> prompts -> completions -> rewards -> advantages -> loss -> new weights

How it differs from the textbook (arXiv 2402.03300):

- On policy by default: one update on a batch, so the ratio is 1 and nothing is clipped. The log-probabilities of the
  policy that sampled come from the learner's own first forward pass, never from the sampler.
- No KL penalty and no reference model, unless ``algo.kl_beta`` asks for them.
- The prompt of a group is computed once, in sampling and in learning, forward and backward; its siblings share it.
- What no judge could score is masked, not punished. Groups whose siblings all earned the same cost no forward pass.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Collection, Mapping

import torch

from vidbridge.algo.advantages import Scale, degenerate, group_advantages, group_std, overlong_penalty
from vidbridge.algo.objectives import Objective, clipped, grpo_loss
from vidbridge.algo.token_weights import token_weights
from vidbridge.config.schema import GrpoConfig
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.diagnostics.gradients import Diagnostics, Probe
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import Scorer, reward_metrics
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.step_metrics import (
    Clock,
    LearnerMetrics,
    lengths_of,
    rewards_of,
    rollout_metrics,
    sampling_metrics,
)
from vidbridge.types import Completion, Group, SamplingParams, StepResult

_REFILLS_FROM = 10**6  # steps down the deck: farther than any run goes

LoadedPrompts = Mapping[int, Loaded]  # by their index in the batch


class GrpoStep:
    """``step(n)`` samples, scores and learns from the n-th batch; it depends on (weights, seed, n) alone."""

    def __init__(
        self,
        *,
        mixture: Mixture,
        processor: Processor,
        rollout: RolloutEngine,
        reward: GatedSum,
        policy: Policy,
        algo: GrpoConfig,
        sampling: SamplingParams,
        objective: Objective = clipped,
        advantage_scale: Scale = group_std,
        last: int | None = None,  # number of the last step; None: not known
        bad: BadSamples | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self.mixture, self.processor, self.rollout = mixture, processor, rollout
        self.reward, self.policy, self.algo = reward, policy, algo
        self.objective, self.advantage_scale = objective, advantage_scale
        self.sampling, self.diagnostics = sampling, diagnostics
        self.loader = Loader(mixture.tasks, processor, bad)
        self.prompts = Prefetch(self._prompts, last=last)

    def __call__(self, step: int) -> StepResult:
        clock = Clock()
        with clock("data"):
            with collectives.fail_together():
                prompts = self.prompts(step)
            data_metrics = self.loader.report(prompts.values())
        groups = self._sample(prompts, clock, seed=self._seed(step))
        metrics = {  # of all groups, before any is replaced: they show the policy as it is
            **data_metrics,
            **reward_metrics(groups),
            **rollout_metrics(groups),
        }
        if self.algo.max_refills:
            groups, more = self._refilled(groups, step, clock, own=prompts.keys())
            metrics |= more
        metrics |= self.reward.metrics()
        with clock("learner"):
            limit = self.sampling.max_completion_tokens
            penalty = overlong_penalty(lengths_of(groups), limit, self.algo.overlong_frac)
            metrics["rollout/overlong_penalty"] = penalty.mean().item()
            names = [group.sample.task for group in groups]
            tasks = torch.tensor([names.index(name) for name in names])
            advantages = group_advantages(rewards_of(groups) + penalty, self.advantage_scale, tasks)
            probe = self.diagnostics.at(step) if self.diagnostics else None
            metrics |= self._learn(groups, advantages, own=prompts.keys(), probe=probe)
        if probe is not None:
            with clock("diagnostics"):
                metrics |= probe.metrics(groups, advantages, metrics.get("policy/grad_norm"))
        metrics |= collectives.all_reduce_max(clock.metrics())
        return StepResult(metrics=metrics, groups=tuple(groups), advantages=advantages.tolist())

    def _prompts(self, step: int) -> LoadedPrompts:
        """Return the prompts of the batch that this rank works on."""
        return self.loader.load(self.loader.own(self.mixture.batch(step)))

    def _seed(self, step: int) -> int:
        return self.mixture.seed * 1_000_003 + step

    def _sample(self, prompts: LoadedPrompts, clock: Clock, *, seed: int) -> list[Group]:
        """Return a scored group for each prompt of every rank, in the order of the batch; others' have no tensors."""
        with clock("sync"):
            self.rollout.sync(self.policy)
        with collectives.fail_together(), Scorer(self.reward) as scorer:

            def ended(index: int, completions: tuple[Completion, ...]) -> None:
                of = prompts[index]
                group = Group(sample=of.sample, prompt=of.prompt, encoded=of.encoded, completions=completions)
                scorer.add(index, group)

            with clock("rollout"):  # a group goes to the judge while others are still decoded
                self.rollout.generate(
                    [each.encoded for each in prompts.values()],
                    self.algo.group_size,
                    self.sampling,
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
        """Replace groups that teach nothing by others: dynamic sampling, DAPO (arXiv 2503.14476) equation 11.

        At most ``max_refills`` times; what teaches nothing then stays. Refills come from far down the same endless
        deck, so that they too are a function of (seed, step). An index of the batch stays with its rank.
        """
        groups, num_extra = list(groups), 0
        for refill in range(1, self.algo.max_refills + 1):
            idle = degenerate(rewards_of(groups)).nonzero().flatten().tolist()
            if not idle:
                break
            at = refill * _REFILLS_FROM + step
            with clock("data"), collectives.fail_together():
                samples = enumerate(self.mixture.batch(at)[: len(idle)])
                prompts = self.loader.load({nth: sample for nth, sample in samples if idle[nth] in own})
            fresh = self._sample(prompts, clock, seed=self._seed(at))
            num_extra += len(fresh)
            still_idle = degenerate(rewards_of(fresh)).tolist()
            for index, group, is_idle in zip(idle, fresh, still_idle, strict=True):
                if not is_idle:
                    groups[index] = group
        idle_frac = degenerate(rewards_of(groups)).sum().item() / len(groups)
        return groups, {"rollout/extra_groups": float(num_extra), "rollout/idle_frac": idle_frac}

    def _learn(
        self, groups: list[Group], advantages: torch.Tensor, own: Collection[int], probe: Probe | None
    ) -> dict[str, float]:
        """Make ``ppo_epochs`` updates on these completions, this rank with its ``own`` groups; advantages [P, G]."""
        # made of all groups, so that leaving some out, or to other ranks, changes no denominator
        weights = token_weights(loss_mask(groups), self.algo.loss_norm, self.sampling.max_completion_tokens)
        is_scored = torch.tensor([group.is_scored for group in groups])
        teaches = advantages.ne(0).any(dim=1) | (is_scored & (self.algo.kl_beta > 0))
        here = sorted(own)
        batches_of = partial(
            self.policy.micro_batches,
            [groups[index] for index in here],
            advantages[here].flatten(),
            weights.view(len(groups), self.algo.group_size, -1)[here].flatten(0, 1),
        )
        if probe is None:
            batches = batches_of(teaches=teaches[here].tolist())
        else:
            batches = probe.batches(groups, teaches, lambda mask: batches_of(teaches=mask[here].tolist()))
        metrics = LearnerMetrics()
        for epoch in range(self.algo.ppo_epochs):
            for index, batch in enumerate(batches):
                batch = batch.to(self.policy.module.device)
                num_tokens = int(batch.loss_mask.sum())
                logprobs, entropy = self.policy.logprobs(batch)
                if epoch == 0:
                    # what this forward gives is the policy that sampled: no extra forward for old_logprobs
                    batch = replace(
                        batch, old_logprobs=logprobs.detach(), ref_logprobs=self.policy.ref_logprobs(batch)
                    )
                    batches[index] = batch
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
                    objective=self.objective,
                )
                with probe.reading(index) if probe and epoch == 0 else nullcontext():
                    self.policy.backward(out.loss)
                metrics.add_losses(out.loss.item(), len(batches), out.metrics, weight=num_tokens, epoch=epoch)
                if num_tokens and epoch == 0:
                    metrics.add(sampling_metrics(batch, entropy), weight=num_tokens)
            metrics.add(self.policy.update())
        return metrics.result()
