"""One GRPO step, top to bottom. The rest of the package is what these calls are made of.

    samples -> prompts -> completions -> rewards -> advantages -> loss -> new weights

How it differs from the textbook (arXiv 2402.03300):

- On policy by default: one update on a batch, so the ratio is 1 and nothing is clipped. The log-probabilities of the
  policy that sampled come from the learner's own first forward pass. The sampler's are measured against them, and where
  an engine is known to be a little off, ``algo.correction`` weighs its tokens.
- With ``ahead`` the weights that sampled are one update old. Without a correction their log-probabilities, told by the
  sampler, are then the old ones of the ratio that is clipped.
- No KL penalty and no reference model, unless ``algo.kl_beta`` asks for them.
- The prompt of a group is computed once in sampling and once in learning, forward and backward, for all siblings.
- A completion that no judge could score is masked, not punished. A group whose siblings all earned the same is left
  out of the learner, unless a penalty (KL, length) tells them apart.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Collection

import torch

from vidbridge.algo.advantages import Scale, group_advantages, lengths_of, overlong_penalty, rewards_of, tasks_of
from vidbridge.algo.dynamic_sampling import dynamic_sampling
from vidbridge.algo.mismatch import Correction, GapGate, corrected
from vidbridge.algo.objectives import Objective, grpo_loss
from vidbridge.algo.token_weights import token_weights
from vidbridge.config.schema import GrpoConfig
from vidbridge.diagnostics.gradients import Diagnostics, Probe
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.policy import Policy
from vidbridge.rewards.scoring import reward_metrics
from vidbridge.runtime import collectives
from vidbridge.sampler import Sampler
from vidbridge.step_metrics import Clock, LearnerMetrics, rollout_metrics
from vidbridge.types import Group, StepResult


@dataclass(kw_only=True)
class GrpoStep:
    """``step(n)`` samples, scores and learns from batch n, from 0, and returns a StepResult; called by all ranks.

    For the same weights, prompts and completions depend on (seed, n) alone.
    """

    sampler: Sampler
    policy: Policy
    algo: GrpoConfig
    objective: Objective
    advantage_scale: Scale
    correction: Correction
    diagnostics: Diagnostics

    def __post_init__(self) -> None:
        self.gate = GapGate(self.algo.max_logprob_gap)
        self.is_behind = self.sampler.ahead and self.algo.correction == "none"

    def __call__(self, step: int) -> StepResult:
        clock = Clock()
        groups, own, metrics = self.sampler(step, clock)
        # of all groups, before any is replaced: they show the policy as it is
        metrics = {**metrics, **reward_metrics(groups), **rollout_metrics(groups)}
        if self.algo.max_refills:
            groups, more = dynamic_sampling(
                groups, partial(self.sampler.refill, step, clock, own), self.algo.max_refills
            )
            metrics |= more
        metrics |= self.sampler.reward.metrics()
        self.sampler.begin_next(step, clock)
        with clock("learner"):
            limit = self.sampler.sampling.max_completion_tokens
            penalty = overlong_penalty(lengths_of(groups), limit, self.algo.overlong_frac)
            metrics["rollout/overlong_penalty"] = penalty.mean().item()
            advantages = group_advantages(rewards_of(groups) + penalty, self.advantage_scale, tasks_of(groups))
            probe = self.diagnostics.at(step)
            metrics |= self._learn(groups, advantages, own=own, probe=probe)
            metrics |= probe.metrics(groups, advantages, metrics.get("policy/grad_norm"))
        self.gate(metrics)
        metrics |= collectives.all_reduce_max(clock.metrics())
        return StepResult(metrics=metrics, groups=tuple(groups), advantages=advantages.tolist())

    def _learn(
        self, groups: list[Group], advantages: torch.Tensor, own: Collection[int], probe: Probe
    ) -> dict[str, float]:
        """Make ``ppo_epochs`` updates, this rank with its ``own`` groups; return metrics. Advantages are [P, G]."""
        # made of all groups, so that leaving some out, or to other ranks, changes no denominator
        limit = self.sampler.sampling.max_completion_tokens
        weights = token_weights(loss_mask(groups), self.algo.loss_norm, limit)
        is_scored = torch.tensor([group.is_scored for group in groups])
        teaches = advantages.ne(0).any(dim=1) | (is_scored & (self.algo.kl_beta > 0))
        here = sorted(own)
        batches_of = partial(
            self.policy.micro_batches,
            [groups[index] for index in here],
            advantages[here].flatten(),
            weights.view(len(groups), self.algo.group_size, -1)[here].flatten(0, 1),
        )
        batches = probe.batches(groups, teaches, lambda mask: batches_of(teaches=mask[here].tolist()))
        batches = self.policy.with_router_weights(batches)
        metrics = LearnerMetrics()
        for epoch in range(self.algo.ppo_epochs):
            for index, batch in enumerate(batches):
                batch = batch.to(self.policy.module.device)
                outputs = self.policy.forward(batch)
                logprobs = outputs.logprobs
                if epoch == 0:
                    # on policy the weights are those that sampled, so this forward pass gives old_logprobs
                    old = batch.sampler_logprobs if self.is_behind else logprobs.detach()
                    batch = replace(batch, old_logprobs=old, ref_logprobs=self.policy.ref_logprobs(batch))
                    batch = batches[index] = corrected(batch, logprobs, self.correction, self.algo.correction_cap)
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
                with probe.reading(index) if epoch == 0 else nullcontext():
                    self.policy.backward(out.loss + outputs.router_loss)
                metrics.add_batch(batch, out, outputs, num_parts=len(batches), epoch=epoch, is_behind=self.is_behind)
            metrics.add(self.policy.update())
        return metrics.result()
