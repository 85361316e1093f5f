"""The optimizer side of a policy: gradients in, new weights out. This engine: one process, AdamW."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Callable, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

SCHEDULES = ("linear", "constant")
MAX_SKIPPED = 3  # updates in a row without a finite gradient, then the run stops


class Diverged(RuntimeError):
    """The gradient has been NaN or infinite too often; the message is for the user."""


class Engine(Protocol):
    """Owns the optimizer of ``module``. ``backward`` may be called many times before one ``update``."""

    module: nn.Module

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar loss to what this update has gathered so far."""

    def update(self) -> dict[str, float]:
        """One optimizer step with the gathered gradient, which is then forgotten; returns metrics.

        Raises Diverged when the gradient was not finite MAX_SKIPPED times in a row.
        """

    def snapshot(self) -> Callable[[Path], None]:
        """A copy of weights and optimizer as they are now; called with a folder, it is written there."""

    def load(self, folder: Path) -> None:
        """Go on from what a snapshot wrote; the module is the one it was, down to its shapes."""


def lr_factor(update: int, *, total_updates: int, schedule: str, warmup_frac: float) -> float:
    """What the learning rate is multiplied by at update 0, 1, ..: a linear rise, then a fall to zero or a plateau.

    The first update is never wasted on a rate of zero, and neither is the last.

    >>> [lr_factor(i, total_updates=4, schedule="linear", warmup_frac=0.0) for i in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = round(warmup_frac * total_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    return max(0.0, (total_updates - update) / (total_updates - warmup)) if total_updates > warmup else 1.0


class LocalEngine:
    """AdamW with gradient clipping and a learning-rate schedule over ``total_updates`` updates.

    Weights of less than 32 bits are trained through 32-bit copies: at lr 1e-6 a bfloat16 weight would round every
    change away. An update whose gradient is not finite is skipped and counted, and leaves no trace in the optimizer.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        total_updates: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: str = "linear",
        warmup_frac: float = 0.0,
        max_grad_norm: float = 1.0,
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown learning-rate schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
        self.module = module
        self.max_grad_norm = max_grad_norm
        self.updates = 0
        self.skipped_updates = 0
        self.skipped_in_a_row = 0
        self.trained = [weight for weight in module.parameters() if weight.requires_grad]
        if not self.trained:
            raise ValueError("every part of the model is frozen: there is nothing to train")
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.trained]
        # Biases and norm scales are not decayed, as usual.
        groups = [
            {"params": [w for w in self.masters if w.ndim >= 2], "weight_decay": weight_decay},
            {"params": [w for w in self.masters if w.ndim < 2], "weight_decay": 0.0},
        ]
        # fused: one call for all tensors; the loop over small ones would cost more than their arithmetic
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)
        self.lr_at = lambda update: lr * lr_factor(
            update, total_updates=total_updates, schedule=schedule, warmup_frac=warmup_frac
        )

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        for weight, master in self._copies():
            if weight.grad is not None:
                # Gathered in 32 bits, so that many small micro-batches add up.
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def update(self) -> dict[str, float]:
        """Metrics policy/lr and policy/skipped_updates (so far), and policy/grad_norm before clipping if finite."""
        for master in self.masters:
            if master.grad is None:  # nothing was gathered: zero, so that leaving out what adds nothing changes nothing
                master.grad = torch.zeros_like(master)
        lr = self.lr_at(self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        grad_norm = float(nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm))
        if math.isfinite(grad_norm):
            self.optimizer.step()
            with torch.no_grad():
                for weight, master in self._copies():
                    weight.copy_(master)
            self.skipped_in_a_row = 0
        else:
            self.skipped_updates += 1
            self.skipped_in_a_row += 1
        self.updates += 1  # a skipped one too: the rate is a function of the step number
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row == MAX_SKIPPED:
            raise Diverged(
                f"the gradient was not finite in {MAX_SKIPPED} updates in a row (the last is number {self.updates}); "
                f"the weights are those from before. Try a lower optim.lr or optim.max_grad_norm"
            )
        metrics = {"policy/lr": lr, "policy/skipped_updates": float(self.skipped_updates)}
        return metrics | ({"policy/grad_norm": grad_norm} if math.isfinite(grad_norm) else {})

    def _copies(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        return [(weight, master) for weight, master in zip(self.trained, self.masters) if master is not weight]

    def snapshot(self) -> Callable[[Path], None]:
        names = {weight: name for name, weight in self.module.named_parameters()}
        tensors = {f"weight.{names[w]}": m.detach().cpu().clone() for w, m in zip(self.trained, self.masters)}
        for weight, master in zip(self.trained, self.masters):
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{names[weight]}"] = value.detach().cpu().clone()
        counts = {
            "updates": self.updates,
            "skipped_updates": self.skipped_updates,
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        metadata = {name: str(count) for name, count in counts.items()}

        def write(folder: Path) -> None:
            save_file(tensors, folder / "engine.safetensors", metadata)

        return write

    def load(self, folder: Path) -> None:
        path = folder / "engine.safetensors"
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            for name, count in file.metadata().items():
                setattr(self, name, int(count))
        names = {weight: name for name, weight in self.module.named_parameters()}
        with torch.no_grad():
            for weight, master in zip(self.trained, self.masters):
                master.copy_(tensors[f"weight.{names[weight]}"])
                weight.copy_(master)
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{names[weight]}" in tensors]
                if keys:
                    self.optimizer.state[master] = {
                        key: tensors[f"{key}.{names[weight]}"].to(master.device) for key in keys
                    }
