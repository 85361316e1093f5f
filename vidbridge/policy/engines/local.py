"""The engine in which every rank holds the whole model and its optimizer: one process, or a small model on a few."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ContextManager, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vidbridge.config.schema import OptimConfig
from vidbridge.policy.engines.base import EngineConfig, Updates, adamw, trained_weights
from vidbridge.policy.engines.files import WHOLE, check_all_there
from vidbridge.policy.policy import token_logprobs
from vidbridge.runtime import collectives
from vidbridge.types import Batch, Outputs


@dataclass(frozen=True, kw_only=True)
class LocalConfig(EngineConfig):
    def build(self, module: nn.Module, optim: OptimConfig, *, total_updates: int) -> LocalEngine:
        return LocalEngine(module, optim, total_updates=total_updates)


class LocalEngine(Updates):
    """AdamW with gradient clipping and a learning-rate schedule over ``total_updates`` updates.

    Weights of less than 32 bits are trained through 32-bit copies: at lr 1e-6 a bfloat16 weight would round every
    change away. An update whose gradient is not finite is skipped and counted, and leaves no trace in the optimizer.
    Many ranks add up their gradients and then all do the same.
    """

    def __init__(self, module: nn.Module, optim: OptimConfig, *, total_updates: int):
        super().__init__(optim, total_updates=total_updates)
        self.module = module
        self.max_grad_norm = optim.max_grad_norm
        self.trained = trained_weights(module)
        self.masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self.trained]
        self.optimizer = adamw(self.masters, optim)

    def forward(self, batch: Batch, temperature: float, suppressed_ids: torch.Tensor) -> Outputs:
        return token_logprobs(self.module, batch, temperature, suppressed_ids)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        for weight, master in self._copies():
            if weight.grad is not None:
                # Gathered in 32 bits, so that many small micro-batches add up.
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def update(self) -> dict[str, float]:
        for master in self.masters:
            if master.grad is None:  # nothing was gathered: zero, so that leaving out what adds nothing changes nothing
                master.grad = torch.zeros_like(master)
            collectives.all_reduce_sum_(master.grad)
        self.set_rate(self.optimizer)
        grad_norm = float(nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm))
        if math.isfinite(grad_norm):
            self.optimizer.step()
            with torch.no_grad():
                for weight, master in self._copies():
                    weight.copy_(master)
        self.optimizer.zero_grad(set_to_none=True)
        return self.count(grad_norm)

    def whole(self) -> nn.Module:
        return self.module

    def outline(self) -> nn.Module:
        return self.module

    def gathered(self, weights: Sequence[nn.Parameter]) -> ContextManager[Any]:
        return nullcontext()

    def _copies(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        return [(weight, master) for weight, master in zip(self.trained, self.masters) if master is not weight]

    def snapshot(self) -> Callable[[Path], None]:
        """The first rank writes for all: they hold the same."""
        if not collectives.is_rank_0():
            return lambda folder: None
        names = {weight: name for name, weight in self.module.named_parameters()}
        tensors = {f"weight.{names[w]}": m.detach().cpu().clone() for w, m in zip(self.trained, self.masters)}
        for weight, master in zip(self.trained, self.masters):
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{names[weight]}"] = value.detach().cpu().clone()
        counts = self.counts()
        return lambda folder: save_file(tensors, folder / WHOLE, counts)

    def load(self, folder: Path) -> None:
        tensors = load_file(folder / WHOLE)
        names = {weight: name for name, weight in self.module.named_parameters()}
        trained = {names[weight]: weight for weight in self.trained}
        sizes = {name: tensors[f"weight.{name}"].numel() if f"weight.{name}" in tensors else 0 for name in trained}
        check_all_there(folder, sizes, trained)
        with safe_open(folder / WHOLE, framework="pt") as file:
            self.set_counts(file.metadata())
        with torch.no_grad():
            for weight, master in zip(self.trained, self.masters):
                master.copy_(tensors[f"weight.{names[weight]}"])
                weight.copy_(master)
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{names[weight]}" in tensors]
                if keys:
                    self.optimizer.state[master] = {
                        key: tensors[f"{key}.{names[weight]}"].to(master.device) for key in keys
                    }
