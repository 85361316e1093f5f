"""Why a mix of tasks helps or hurts: what each task does to the gradient, how sure the policy is, what teaches.

A step that is looked at takes its tasks one after another instead of packing them together, and reads off what each
adds to the gradient: no second forward, no other loss, and the update is the same but for the order in which floats are
added.

    gradient/cosine/caption/qa      of the two tasks' gradients; below 0 they pull against each other
    gradient/cosine/qa/qa           of two halves of one task's prompts: as large as noise lets a cosine be
    gradient/norm/qa                estimated for all weights, comparable with policy/grad_norm
    entropy/qa/reasoning, ../answer mean of -log p over the sampled tokens, nats: its expectation is the entropy
    advantage/qa/idle_frac          groups that teach nothing: all siblings earned the same, or nobody could score them
    advantage/qa/share              of the absolute advantages of the whole batch
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Callable, ContextManager, Iterator, Mapping, Sequence

import torch
from torch import nn

from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives
from vidbridge.text.tags import answer_start
from vidbridge.types import Batch, Completion, Group

NUM_COORDINATES = 2**16  # of all weights together, that gradients are compared on
Share = tuple[str, int]  # a task, and the first or second half of its groups


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Looks at every ``every``-th step, the first one included; 0: at none."""

    module: nn.Module  # the one that is trained
    processor: Processor
    every: int

    def at(self, step: int) -> Probe:
        """Return what looks at this step, or looks away."""
        return Look(self.module, self.processor) if self.every and step % self.every == 0 else Probe()


class Probe:
    """The calls of a step that is not looked at: ``batches``, ``reading`` around each backward pass, ``metrics``."""

    def batches(
        self, groups: Sequence[Group], teaches: torch.Tensor, batches_of: Callable[[torch.Tensor], list[Batch]]
    ) -> list[Batch]:
        """Return the micro-batches of the groups that teach, [P] bool; ``batches_of(mask)`` makes those of some."""
        return batches_of(teaches)

    def reading(self, index: int) -> ContextManager[None]:
        """Return a context for the backward pass of the micro-batch ``index``."""
        return nullcontext()

    def metrics(self, groups: Sequence[Group], advantages: torch.Tensor, grad_norm: float | None) -> dict[str, float]:
        """Called by all ranks, with all groups; ``grad_norm`` of the whole gradient, None if that was not finite."""
        return {}


@dataclass
class Look(Probe):
    """A look at one step: whose gradient is whose."""

    module: nn.Module
    processor: Processor
    owners: list[Share] = field(default_factory=list)  # of the batches
    gradients: dict[Share, torch.Tensor] = field(default_factory=dict)  # on this rank, at the coordinates

    def batches(
        self, groups: Sequence[Group], teaches: torch.Tensor, batches_of: Callable[[torch.Tensor], list[Batch]]
    ) -> list[Batch]:
        """Return the micro-batches task by task, half by half."""
        batches: list[Batch] = []
        for share, mask in shares_of(groups, teaches).items():
            batches += batches_of(mask)
            self.owners += [share] * (len(batches) - len(self.owners))
        return batches

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Read the gradient of the micro-batch ``index``, whose loss is differentiated inside."""
        share = self.owners[index]
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        chosen = coordinates([size_of(weight) for weight in weights], NUM_COORDINATES)
        sums = [torch.zeros(len(index), device=weight.device) for weight, index in zip(weights, chosen)]

        def read(number: int, gradient: torch.Tensor) -> None:
            sums[number] += gradient.detach().flatten()[chosen[number].to(gradient.device)].float()

        handles = [weight.register_hook(partial(read, number)) for number, weight in enumerate(weights)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        found = torch.cat(sums)
        self.gradients[share] = self.gradients[share] + found if share in self.gradients else found

    def metrics(self, groups: Sequence[Group], advantages: torch.Tensor, grad_norm: float | None) -> dict[str, float]:
        for gradient in self.gradients.values():
            collectives.all_reduce_sum_(gradient)
        found = {share: gradient for share, gradient in self.gradients.items() if share[0]}
        return {
            **(gradient_metrics(found, grad_norm) if grad_norm is not None else {}),
            **entropy_metrics(groups, self.processor),
            **advantage_metrics(groups, advantages),
        }


def shares_of(groups: Sequence[Group], teaches: torch.Tensor) -> dict[Share, torch.Tensor]:
    """Return which groups each share has, [P] bool; together they are ``teaches``, and the same on all ranks."""
    count: Counter[str] = Counter()
    masks: dict[Share, torch.Tensor] = {}
    for index in teaches.nonzero().flatten().tolist():
        task = groups[index].sample.task
        masks.setdefault((task, count[task] % 2), torch.zeros_like(teaches))[index] = True
        count[task] += 1
    return dict(sorted(masks.items())) or {("", 0): teaches}  # all ranks work on every weight, be it for nothing


def coordinates(sizes: Sequence[int], number: int) -> list[torch.Tensor]:
    """Return about ``number`` indices in all weights alike, at least one in each; the same on every call and rank."""
    generator = torch.Generator().manual_seed(0)
    frac = min(1.0, number / sum(sizes))
    return [torch.randint(size, (max(1, round(frac * size)),), generator=generator) for size in sizes]


def size_of(weight: nn.Parameter) -> int:
    """Numbers in it; a rank of ZeRO-3 holds none of them until they are used."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def gradient_metrics(gradients: Mapping[Share, torch.Tensor], grad_norm: float) -> dict[str, float]:
    """Cosines between tasks and between the halves of a task, and each task's norm in units of ``grad_norm``.

    Where the scale of the gradients cancels: engines differ in it. Nothing about a task whose gradient is zero.
    """
    by_task: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for (task, half), gradient in gradients.items():
        if gradient.any():
            by_task[task][half] = gradient
    whole = {task: torch.stack(list(halves.values())).sum(dim=0) for task, halves in by_task.items()}
    if not whole:
        return {}
    pairs = {(one, other): (whole[one], whole[other]) for one, other in combinations(sorted(whole), 2)}
    pairs |= {(task, task): (halves[0], halves[1]) for task, halves in by_task.items() if len(halves) == 2}
    total = torch.stack(list(whole.values())).sum(dim=0).norm()
    return {
        **{f"gradient/cosine/{one}/{other}": cosine(*vectors) for (one, other), vectors in pairs.items()},
        **{f"gradient/norm/{task}": float(grad_norm * each.norm() / total) for task, each in whole.items()},
    }


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def entropy_metrics(groups: Sequence[Group], processor: Processor) -> dict[str, float]:
    """Return the mean surprise of sampled tokens by task, before and after the answer begins."""
    surprise: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for completion in group.completions:
            if completion.sampler_logprobs is not None:
                reasoning = reasoning_tokens(completion, processor)
                surprise[f"entropy/{group.sample.task}/reasoning"] += completion.sampler_logprobs[:reasoning]
                surprise[f"entropy/{group.sample.task}/answer"] += completion.sampler_logprobs[reasoning:]
    return {name: -sum(logprobs) / len(logprobs) for name, logprobs in surprise.items() if logprobs}


def reasoning_tokens(completion: Completion, processor: Processor) -> int:
    """Return how many tokens come before the answer; all where there is none."""
    start = answer_start(completion.text)
    if start is None:
        return len(completion.token_ids)
    low, high = 0, len(completion.token_ids)  # the text of so many tokens ends before the answer, or goes beyond it
    while low < high:
        middle = (low + high + 1) // 2
        if len(processor.decode(completion.token_ids[:middle])) <= start:
            low = middle
        else:
            high = middle - 1
    return low


def advantage_metrics(groups: Sequence[Group], advantages: torch.Tensor) -> dict[str, float]:
    """Return what each task has to teach, of advantages [P, G]."""
    advantages = advantages.double()
    metrics, total = {}, advantages.abs().sum().clamp(min=1e-12)
    for task in sorted({group.sample.task for group in groups}):
        own = advantages[torch.tensor([group.sample.task == task for group in groups])]
        metrics[f"advantage/{task}/idle_frac"] = float((own == 0).all(dim=1).double().mean())
        metrics[f"advantage/{task}/share"] = float(own.abs().sum() / total)
    return metrics
