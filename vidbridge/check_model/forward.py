"""Whether our forward passes compute what the plain Hugging Face model computes, as far as its number format can tell.

Nobody knows beforehand how far two right answers lie apart: in 16 bits it depends on depth and weights. So it is
measured. The plain model gives the same log-probabilities twice, once with eager attention and each completion by
itself, once with fused attention and the completions of a prompt together. Both are right, and differ by rounding
alone. Ours is one more order of the same operations: it may lie FACTOR times as far away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from vidbridge.check_model.base import Item, Row, batch_of
from vidbridge.check_model.routing import experts_alike
from vidbridge.policy.plain import as_library, repeated_logits, repeated_logprobs
from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import RolloutEngine
from vidbridge.types import Completion, EncodedPrompt, Group, SamplingParams

FACTOR = 4.0
NUM_SIBLINGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The log-probabilities that one implementation gives some completions."""

    logprobs: torch.Tensor  # [M], of all their tokens
    gradient: torch.Tensor  # [..] float32, of a sum of them with regard to the ``watched`` weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far apart two views are: log-probabilities in nats, gradients relative to their length."""

    mean: float
    max: float
    gradient: float

    def __str__(self) -> str:
        return f"mean {self.mean:.1e}, max {self.max:.1e}, gradient {self.gradient:.1e}"

    def times(self, factor: float) -> Gap:
        return Gap(mean=factor * self.mean, max=factor * self.max, gradient=factor * self.gradient)

    def within(self, other: Gap) -> bool:
        return self.mean <= other.mean and self.max <= other.max and self.gradient <= other.gradient  # nan is not


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The plain model's view of ``groups``, and how far a right answer may be from it."""

    groups: Sequence[Group]
    view: View
    band: Gap


def sample(
    policy: Policy, rollout: RolloutEngine, sampling: SamplingParams, items: Sequence[Item]
) -> list[Group]:
    """NUM_SIBLINGS completions of each item's prompt, as training would sample them."""
    encoded = [policy.processor.encode(item.prompt) for item in items]
    completions = rollout.generate(encoded, NUM_SIBLINGS, sampling, seed=0)
    return [
        Group(sample=item.sample, prompt=item.prompt, encoded=tensors, completions=siblings)
        for item, tensors, siblings in zip(items, encoded, completions)
    ]


def reference_of(policy: Policy, groups: Sequence[Group]) -> Reference:
    """The plain model's view of ``groups``, and how far its other view is from it, FACTOR times."""
    view = plain_view(policy, groups, attention="eager", together=False)
    rounding = gap(plain_view(policy, groups, attention="sdpa", together=True), view)
    least = torch.finfo(policy.module.dtype).eps  # two views of a small model may happen to be the same
    mean, largest, gradient = (max(value, least) for value in (rounding.mean, rounding.max, rounding.gradient))
    return Reference(groups=groups, view=view, band=Gap(mean=mean, max=largest, gradient=gradient).times(FACTOR))


def plain_view(policy: Policy, groups: Sequence[Group], *, attention: str, together: bool) -> View:
    """Return what repeated rows give: the completions of a prompt in one call, or each in a call of its own."""

    def forward(part: Sequence[Group]) -> torch.Tensor:
        return repeated_logprobs(
            policy.module, part, temperature=policy.temperature, suppressed_ids=policy.suppressed_ids
        )

    parts = [[group] for group in groups]
    if not together:
        parts = [[replace(group, completions=(done,))] for group in groups for done in group.completions]
    policy.module.train()  # as the learner has it, with its gradient checkpointing
    with as_library(policy.module, attention):
        return view_of(policy, forward, parts)


def packed_view(policy: Policy, groups: Sequence[Group]) -> View:
    """Return what the learner gives, with all groups in one row."""
    return view_of(policy, lambda part: policy.logprobs(batch_of(policy, part))[0], [groups])


def view_of(
    policy: Policy, forward: Callable[[Sequence[Group]], torch.Tensor], parts: Sequence[Sequence[Group]]
) -> View:
    """Return the view by ``forward``, which gives log-probabilities [N, T] of a part; every second counts against."""
    weights = watched(policy.module)
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    logprobs: list[torch.Tensor] = []
    sign = 1.0
    for part in parts:
        table = forward(part)
        loss = torch.zeros((), device=table.device)
        for row, done in zip(table, (done for group in part for done in group.completions), strict=True):
            own = row[: len(done.token_ids)]
            loss, sign = loss + sign * own.sum(), -sign
            logprobs.append(own.detach())
        if weights:
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True)):
                if gradient is not None:
                    total += gradient
    gradient = torch.cat([torch.zeros(0), *(total.flatten().cpu() for total in sums)])
    return View(logprobs=torch.cat(logprobs), gradient=gradient)


def watched(module: PreTrainedModel) -> list[nn.Parameter]:
    """Return the modules that are trained of the first and last text layer and the first vision block.

    What reaches them has come through all layers; gradients of all weights would be too much beside a large model.
    """
    layers = module.model.language_model.layers
    parts = dict.fromkeys((layers[0], layers[-1], module.model.visual.blocks[0]))
    return [weight for part in parts for weight in part.parameters() if weight.requires_grad]


def gap(one: View, other: View) -> Gap:
    apart = (one.logprobs - other.logprobs).abs()
    scale = other.gradient.norm()
    return Gap(
        mean=apart.mean().item(),
        max=apart.max().item(),
        gradient=((one.gradient - other.gradient).norm() / scale).item() if len(other.gradient) else 0.0,
    )


def check_packed(policy: Policy, reference: Reference) -> Row:
    """The learner's packed row against repeated rows: log-probabilities and gradients."""
    found, band = gap(packed_view(policy, reference.groups), reference.view), reference.band
    ok = found.within(band)
    return Row(
        name="packed row = repeated rows",
        ok=ok,
        found=f"{len(reference.view.logprobs)} tokens: {found}; rounding explains {band}",
        advice="" if ok else "do not train: completions see what they should not, or positions are lost "
        "(vidbridge/policy/attention.py, packing.py)",
    )


def check_greedy(
    policy: Policy, rollout: RolloutEngine, sampling: SamplingParams, items: Sequence[Item], band: Gap
) -> Row:
    """Every token of a greedy rollout must be the likeliest of the plain model, or as likely as rounding can tell."""
    encoded = [policy.processor.encode(item.prompt) for item in items]
    groups = rollout.generate(encoded, 2, sampling, seed=0)
    num_tokens, num_ties, worst, told = 0, 0, 0.0, ""
    for number, (prompt, (done, _)) in enumerate(zip(encoded, groups)):
        margins, likeliest = margins_of(policy, prompt, done)
        num_tokens, num_ties = num_tokens + len(margins), num_ties + int((margins > 0).sum())
        worst = max(worst, margins.max().item())
        if not told and not bool((margins <= band.max).all()):
            at = int((~(margins <= band.max)).nonzero()[0])
            words = policy.processor.tokenizer.convert_ids_to_tokens([done.token_ids[at], int(likeliest[at])])
            told = (
                f"token {at + 1} of prompt {number + 1} is {words[0]!r}, but {words[1]!r} is likelier by "
                f"{margins[at].item():.2g} nats; rounding explains {band.max:.1e}"
            )
    ties = f"{num_ties} of them ties, at most {worst:.1e} nats less likely (rounding explains {band.max:.1e})"
    fine = f"{len(items)} prompts, {num_tokens} tokens: the likeliest of the plain model"
    return Row(
        name="greedy rollout",
        ok=not told,
        found=told or (f"{fine}, {ties}" if num_ties else fine),
        advice="do not train: the decoding step is not this model's (vidbridge/rollout/decode_step.py)" if told else "",
    )


@torch.no_grad()
def margins_of(policy: Policy, prompt: EncodedPrompt, done: Completion) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how much likelier than each token [T] the plain model's likeliest is, and which that is."""
    with as_library(policy.module):
        logits, ids = repeated_logits(policy.module.eval(), [prompt], [done])
    scaled = (logits[0].float() / policy.temperature).index_fill(1, policy.suppressed_ids, -torch.inf)
    highest, likeliest = scaled.max(dim=1)
    return highest - scaled.gather(1, ids[0][:, None])[:, 0], likeliest


@torch.no_grad()
def check_sampler(policy: Policy, groups: Sequence[Group], band: Gap) -> Row:
    """Return what the rollout says of the tokens that it drew against what the learner says of them.

    Of a mixture of experts the row says too how many experts both choose: less than all is rounding, in 16 bits, and
    part of the gap.
    """
    batch = batch_of(policy, groups)
    assert batch.sampler_logprobs is not None
    apart = (policy.logprobs(batch)[0] - batch.sampler_logprobs).abs()[batch.sampled_mask]
    mean, largest = apart.mean().item(), apart.max().item()
    ok = mean <= band.mean and largest <= band.max
    alike = experts_alike(policy, groups)
    routed = "" if alike is None else f"; {alike:.2%} of the experts are the same"
    return Row(
        name="sampler = learner",
        ok=ok,
        found=f"{len(apart)} tokens: gap mean {mean:.1e}, p99 {apart.quantile(0.99).item():.1e}, max {largest:.1e}; "
        f"rounding explains mean {band.mean:.1e}, max {band.max:.1e}{routed}",
        advice="" if ok else "do not train: the policy that samples is not the one that learns (rollout, temperature)",
    )
