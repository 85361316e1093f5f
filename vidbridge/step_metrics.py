"""The numbers of a step: what completions look like, how sure the policy was, how long each stage took."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Iterator, Mapping, Sequence

import torch

from vidbridge.algo.advantages import degenerate, rewards_of
from vidbridge.algo.mismatch import gap_metrics, log_ratio_of
from vidbridge.runtime import collectives
from vidbridge.text.tags import read_tags
from vidbridge.types import Batch, Group, LossOutput, Outputs


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return what completions look like, whatever they earned, and how many groups earned all the same."""
    completions = [completion for group in groups for completion in group.completions]
    tokens = sum(len(completion.token_ids) for completion in completions)
    idle = degenerate(rewards_of(groups)).tolist()
    return {
        "rollout/tokens": float(tokens),
        "rollout/completion_tokens": tokens / len(completions),
        "rollout/truncated_frac": sum(not completion.finished for completion in completions) / len(completions),
        "rollout/degenerate_frac": sum(group.is_scored and each for group, each in zip(groups, idle)) / len(groups),
        "rollout/well_formed_frac": sum(read_tags(done.text) is not None for done in completions) / len(completions),
    }


def masked_mean(values: torch.Tensor, batch: Batch) -> float:
    """Return the mean of values [N, T] over the sampled tokens."""
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


class LearnerMetrics:
    """Metrics of an update's micro-batches, and of all ranks, put together.

    A metric is the mean over its reports, each weighed by its tokens, so that it does not depend on how the batch is
    cut; of a ``.._max`` it is the largest value. 0 where nothing weighs.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._log_ratios: list[torch.Tensor] = []  # learner to sampler, of every token

    def add(self, metrics: Mapping[str, float], weight: float = 1.0) -> None:
        for name, value in metrics.items():
            self._values[name].append((value, weight))

    def add_batch(
        self, batch: Batch, out: LossOutput, outputs: Outputs, *, num_parts: int, epoch: int, is_behind: bool = False
    ) -> None:
        """Add the loss of one of ``num_parts`` micro-batches, which is a part of the update's, and its metrics.

        ``is_behind``: the policy that sampled is another one than this, in the first epoch too.
        """
        self.add({"policy/loss": out.loss.item() * num_parts * collectives.world_size()})
        if batch.router_weight:
            loss = outputs.router_loss.item() / batch.router_weight
            self.add({"policy/router_loss": loss}, weight=batch.router_weight)
        num_tokens = int(batch.loss_mask.sum())
        if num_tokens == 0:  # nothing is learnt in it
            return
        for name, value in out.metrics.items():
            # in the first epoch the ratio is 1 and nothing can be clipped: it would dilute those that follow
            on_policy = epoch == 0 and not is_behind and name.startswith("policy/clip_")
            self.add({name: value}, weight=0 if on_policy else num_tokens)
        if outputs.expert_load:
            self.add({"policy/expert_load_max": outputs.expert_load.item()})
        if epoch == 0:
            self.add({"policy/entropy": masked_mean(outputs.entropies, batch)}, weight=num_tokens)
            log_ratio = log_ratio_of(batch, outputs.logprobs)
            if log_ratio is not None:
                self._log_ratios.append(log_ratio[batch.loss_mask].cpu())

    def result(self) -> dict[str, float]:
        """Return the metrics of all ranks; called by all."""
        merged: dict[str, list[tuple[float, float]]] = defaultdict(list)
        log_ratios: list[torch.Tensor] = []
        for values_of_rank, log_ratios_of_rank in collectives.all_gather((dict(self._values), self._log_ratios)):
            log_ratios += log_ratios_of_rank
            for name, values in values_of_rank.items():
                merged[name] += values
        gaps = gap_metrics(torch.cat(log_ratios)) if log_ratios else {}
        return {**{name: _merged(name, values) for name, values in merged.items()}, **gaps}


def _merged(name: str, values: Sequence[tuple[float, float]]) -> float:
    if name.endswith("_max"):
        return max(value for value, _ in values)
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else 0.0
