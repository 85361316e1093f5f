"""The routers of a mixture of experts: what they chose, and the loss that spreads tokens over the experts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, NamedTuple, Sequence

import torch
from torch import nn


class Routing(NamedTuple):
    """What one router said of all tokens in one call."""

    logits: torch.Tensor  # [S, E], carries the gradient
    experts: torch.Tensor  # [S, k] int64, those that work on each token


@contextmanager
def recorded(routers: Sequence[nn.Module]) -> Iterator[list[Routing]]:
    """Collect what the routers say inside, call after call, in the order of the layers.

    Nothing is computed in the call, so that gradient checkpointing finds the same operations when it repeats it.
    """
    found: list[Routing] = []

    def keep(router: nn.Module, args: Any, out: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        logits, _, experts = out
        found.append(Routing(logits, experts))

    hooks = [router.register_forward_hook(keep) for router in routers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(routings: Sequence[Routing]) -> torch.Tensor:
    """Return E * sum over experts of (tokens that it works on, a token) * (mean probability): k where all are even.

    Both means are over the tokens of all layers. Switch Transformer (arXiv 2101.03961) equations 4 to 6, for k experts
    a token, as the family was trained; the gradient flows through the probabilities alone.
    """
    num_experts = routings[0].logits.shape[1]
    chosen = torch.cat([routing.experts.flatten() for routing in routings]).bincount(minlength=num_experts)
    num_tokens = sum(len(routing.logits) for routing in routings)
    likely = torch.stack([routing.logits.float().softmax(dim=-1).sum(dim=0) for routing in routings]).sum(dim=0)
    return num_experts * (chosen / num_tokens * likely / num_tokens).sum()


def expert_load(routings: Sequence[Routing]) -> torch.Tensor:
    """Return how many tokens the busiest expert of any layer works on, in units of the mean: 1 where all are even."""
    num_experts = routings[0].logits.shape[1]
    loads = [routing.experts.flatten().bincount(minlength=num_experts) for routing in routings]
    return torch.stack([load.max() * num_experts / load.sum() for load in loads]).max()
