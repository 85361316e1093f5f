"""The optimizer side of a policy: gradients in, new weights out. What every engine is and what all have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ContextManager, Protocol, Sequence

import torch
from torch import nn

from vidbridge.config.checks import require_positive
from vidbridge.config.choices import Schedule
from vidbridge.config.schema import OptimConfig
from vidbridge.errors import Diverged
from vidbridge.types import Batch, Outputs

MAX_SKIPPED = 3  # updates in a row without a finite gradient, then the run stops


class Engine(Protocol):
    """Owns the optimizer of ``module``. Every call is made by all ranks, in the same order.

    ``forward`` and ``backward`` may follow each other many times before one ``update``, as often on every rank. The
    gradient is that of the sum of all losses of all ranks.
    """

    module: nn.Module

    def forward(self, batch: Batch, temperature: float, suppressed_ids: torch.Tensor) -> Outputs:
        """Return what ``token_logprobs`` gives, ready for ``backward``."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar loss to what this update has gathered so far."""

    def update(self) -> dict[str, float]:
        """One optimizer step with the gathered gradient, which is then forgotten; returns metrics.

        Raises Diverged when the gradient was not finite MAX_SKIPPED times in a row.
        """

    def whole(self) -> nn.Module:
        """The module with all its weights as they are now, to be used by this rank without the others."""

    def outline(self) -> nn.Module:
        """Return the module with its weights in their whole shapes, and perhaps without their numbers."""

    def gathered(self, weights: Sequence[nn.Parameter]) -> ContextManager[Any]:
        """Within it these weights of the module are whole, to be read; entered and left by all ranks."""

    def snapshot(self) -> Callable[[Path], None]:
        """A copy of weights and optimizer as they are now; called with a folder, it writes this rank's files there."""

    def load(self, folder: Path) -> None:
        """Go on from what a snapshot wrote; module and number of ranks are what they were."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(ABC):
    """The keys of every engine; each has a subclass, with its own keys, that its yaml's ``_target_`` names."""

    max_packed_tokens: int  # in one forward and backward pass; a longer group goes alone

    def __post_init__(self) -> None:
        require_positive("engine", self, "max_packed_tokens")

    @property
    def divides_weights(self) -> bool:
        """Return whether ranks divide the weights, which ``build`` then finds on the CPU, buffers on the device."""
        return False

    @abstractmethod
    def build(self, module: Any, optim: OptimConfig, *, total_updates: int) -> Engine:
        """Return the engine that trains ``module``; called by all ranks."""


def lr_factor(update: int, *, total_updates: int, schedule: Schedule, warmup_frac: float) -> float:
    """Return the factor of the learning rate at update 0, 1, ..: a linear rise, then a fall to zero or a plateau.

    The first update is never wasted on a rate of zero, and neither is the last.

    >>> [lr_factor(i, total_updates=4, schedule=Schedule.linear, warmup_frac=0.0) for i in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = round(warmup_frac * total_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if schedule is Schedule.constant:
        return 1.0
    return max(0.0, (total_updates - update) / (total_updates - warmup)) if total_updates > warmup else 1.0


class Updates:
    """The updates of an engine: how many there were, how many of them were skipped, and the rate of the next."""

    def __init__(self, optim: OptimConfig, *, total_updates: int):
        self.updates = 0
        self.skipped_updates = 0
        self.skipped_in_a_row = 0
        self.lr_at = lambda update: optim.lr * lr_factor(
            update, total_updates=total_updates, schedule=optim.schedule, warmup_frac=optim.warmup_frac
        )

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(self.updates)

    def count(self, grad_norm: float) -> dict[str, float]:
        """Count one more update, skipped unless ``grad_norm`` is finite.

        Returns policy/lr, policy/skipped_updates (so far), and policy/grad_norm before clipping if finite.
        """
        metrics = {"policy/lr": self.lr_at(self.updates)}
        self.updates += 1  # a skipped one too: the rate is a function of the step number
        if math.isfinite(grad_norm):
            self.skipped_in_a_row = 0
            metrics["policy/grad_norm"] = grad_norm
        else:
            self.skipped_updates += 1
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise Diverged(
                f"the gradient was not finite in {MAX_SKIPPED} updates in a row (the last is number {self.updates}); "
                f"the weights are those from before. Try a lower optim.lr or optim.max_grad_norm"
            )
        return metrics | {"policy/skipped_updates": float(self.skipped_updates)}

    def counts(self) -> dict[str, str]:
        """Return the counts for the metadata of a safetensors file."""
        names = ("updates", "skipped_updates", "skipped_in_a_row")
        return {name: str(getattr(self, name)) for name in names}

    def set_counts(self, counts: dict[str, str]) -> None:
        for name in self.counts():
            setattr(self, name, int(counts[name]))


def trained_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained; ValueError when everything is frozen."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    if not trained:
        raise ValueError("every part of the model is frozen: there is nothing to train")
    return trained


def adamw(weights: Sequence[torch.Tensor], optim: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of all engines. Biases and norm scales are not decayed, as usual."""
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one call for all tensors; the loop over small ones would cost more than their arithmetic
    first, second = optim.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.lr, betas=(first, second), fused=True
    )
