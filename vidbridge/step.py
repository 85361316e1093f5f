"""One GRPO step, top to bottom. The rest of the package is what these calls are made of.

    samples -> prompts -> completions -> rewards -> advantages -> loss -> new weights

How it differs from the textbook (arXiv 2402.03300):

- On policy by default: one update on a batch, so the ratio is 1 and nothing is clipped. The log-probabilities of the
  policy that sampled come from the learner's own first forward pass. The sampler's are measured against them, and where
  an engine is known to be a little off, ``algo.correction`` weighs its tokens.
- No KL penalty and no reference model, unless ``algo.kl_beta`` asks for them.
- The prompt of a group is computed once in sampling and once in learning, forward and backward, for all siblings.
- A completion that no judge could score is masked, not punished. A group whose siblings all earned the same is left
  out of the learner, unless a penalty (KL, length) tells them apart.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Collection, Mapping, Sequence

import torch

from vidbridge.algo.advantages import Scale, group_advantages, lengths_of, overlong_penalty, rewards_of, tasks_of
from vidbridge.algo.dynamic_sampling import dynamic_sampling
from vidbridge.algo.mismatch import Correction, GapGate, corrected
from vidbridge.algo.objectives import Objective, grpo_loss
from vidbridge.algo.token_weights import token_weights
from vidbridge.config.schema import GrpoConfig
from vidbridge.data.loader import Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.diagnostics.gradients import Diagnostics, Probe
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.policy import Policy
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import Scorer, reward_metrics
from vidbridge.rollout.base import RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.step_metrics import Clock, LearnerMetrics, rollout_metrics
from vidbridge.types import Completion, Group, SamplingParams, StepResult

_REFILLS_FROM = 10**6  # refill r of step n takes batch n + r times this: farther than any run goes


@dataclass(kw_only=True)
class GrpoStep:
    """``step(n)`` samples, scores and learns from batch n, from 0, and returns a StepResult; called by all ranks.

    For the same weights, prompts and completions depend on (seed, n) alone.
    """

    mixture: Mixture
    loader: Loader
    rollout: RolloutEngine
    sampling: SamplingParams
    reward: GatedSum
    policy: Policy
    algo: GrpoConfig
    objective: Objective
    advantage_scale: Scale
    correction: Correction
    diagnostics: Diagnostics
    last: int | None = None  # index of the last step; None: not known

    def __post_init__(self) -> None:
        self.prompts = Prefetch(self._prompts, last=self.last)
        self.gate = GapGate(self.algo.max_logprob_gap)

    def __call__(self, step: int) -> StepResult:
        clock = Clock()
        with clock("data"):
            with collectives.fail_together():
                prompts = self.prompts(step)
            data_metrics = self.loader.report(prompts.values())
        groups = self._sample(prompts, clock, seed=self._seed(step))
        # of all groups, before any is replaced: they show the policy as it is
        metrics = {**data_metrics, **reward_metrics(groups), **rollout_metrics(groups)}
        if self.algo.max_refills:
            resample = partial(self._resampled, step, clock, prompts.keys())
            groups, more = dynamic_sampling(groups, resample, self.algo.max_refills)
            metrics |= more
        metrics |= self.reward.metrics()
        with clock("learner"):
            limit = self.sampling.max_completion_tokens
            penalty = overlong_penalty(lengths_of(groups), limit, self.algo.overlong_frac)
            metrics["rollout/overlong_penalty"] = penalty.mean().item()
            advantages = group_advantages(rewards_of(groups) + penalty, self.advantage_scale, tasks_of(groups))
            probe = self.diagnostics.at(step)
            metrics |= self._learn(groups, advantages, own=prompts.keys(), probe=probe)
            metrics |= probe.metrics(groups, advantages, metrics.get("policy/grad_norm"))
        self.gate(metrics)
        metrics |= collectives.all_reduce_max(clock.metrics())
        return StepResult(metrics=metrics, groups=tuple(groups), advantages=advantages.tolist())

    def _prompts(self, step: int) -> dict[int, Loaded]:
        """Return the prompts that this rank works on, by their index in the batch."""
        return self.loader.load(self.loader.own(self.mixture.batch(step)))

    def _seed(self, step: int) -> int:
        return self.mixture.seed * 1_000_003 + step

    def _sample(self, prompts: Mapping[int, Loaded], clock: Clock, *, seed: int) -> list[Group]:
        """Sync the rollout, sample and score; return the groups of all ranks by index, others' without tensors."""
        with clock("sync"):
            self.rollout.sync(self.policy)
        with collectives.fail_together(), Scorer(self.reward) as scorer:

            def ended(index: int, completions: tuple[Completion, ...]) -> None:
                of = prompts[index]
                group = Group(sample=of.sample, prompt=of.prompt, encoded=of.encoded, completions=completions)
                scorer.add(index, group)

            with clock("rollout"):  # a judge that waits for a server gets a group while others are decoded
                self.rollout.generate(
                    [each.encoded for each in prompts.values()],
                    self.algo.group_size,
                    self.sampling,
                    seed=seed,
                    indices=list(prompts),
                    ended=ended,
                )
            with clock("reward"):
                groups = scorer.groups()
        return collectives.gather_by_index(groups, lighten=Group.light)

    def _resampled(
        self, step: int, clock: Clock, own: Collection[int], refill: int, idle: Sequence[int]
    ) -> list[Group]:
        """Return other groups, of any task, for the indices ``idle`` of the batch; this rank samples those in ``own``.

        ``refill``, from 1, chooses a batch far down the mixture, so that they too depend on (seed, step) alone.
        """
        at = refill * _REFILLS_FROM + step
        with clock("data"), collectives.fail_together():
            samples = enumerate(self.mixture.batch(at)[: len(idle)])
            prompts = self.loader.load({nth: sample for nth, sample in samples if idle[nth] in own})
        return self._sample(prompts, clock, seed=self._seed(at))

    def _learn(
        self, groups: list[Group], advantages: torch.Tensor, own: Collection[int], probe: Probe
    ) -> dict[str, float]:
        """Make ``ppo_epochs`` updates, this rank with its ``own`` groups; return metrics. Advantages are [P, G]."""
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
        batches = probe.batches(groups, teaches, lambda mask: batches_of(teaches=mask[here].tolist()))
        batches = self.policy.with_router_weights(batches)
        metrics = LearnerMetrics()
        for epoch in range(self.algo.ppo_epochs):
            for index, batch in enumerate(batches):
                batch = batch.to(self.policy.module.device)
                outputs = self.policy.forward(batch)
                logprobs = outputs.logprobs
                if epoch == 0:
                    # the weights are those that sampled, so this forward pass gives old_logprobs
                    batch = replace(
                        batch, old_logprobs=logprobs.detach(), ref_logprobs=self.policy.ref_logprobs(batch)
                    )
                    batch = batches[index] = corrected(batch, self.correction, self.algo.correction_cap)
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
                metrics.add_batch(batch, out, outputs, num_parts=len(batches), epoch=epoch)
            metrics.add(self.policy.update())
        return metrics.result()
