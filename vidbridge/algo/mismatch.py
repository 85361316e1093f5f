"""How far the sampler's distribution is from the learner's, and weights that make up for it, by name.

An engine with kernels of its own, in 16 bits, with older weights or with top-p draws its tokens from mu, while the
gradient is taken of log pi. Weighing a token by pi / mu (importance sampling) makes the mean gradient that of pi again;
a few huge ratios make it noisy, so they are cut at ``algo.correction_cap``. ``algo.correction`` names one of
CORRECTIONS, or a function of one's own by its dotted name. What mu never draws (top-p, min-p) no weight brings back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping, Protocol

import torch

from vidbridge.errors import Mismatch
from vidbridge.types import Batch

PATIENCE = 10  # steps


class Correction(Protocol):
    def __call__(self, log_ratio: torch.Tensor, *, cap: float) -> torch.Tensor:
        """Return what the weight of every token is multiplied by, [N, T].

        ``log_ratio`` [N, T] is log pi - log mu, without gradient; 0 on padding and where nothing is learnt.
        """


def none(log_ratio: torch.Tensor, *, cap: float) -> torch.Tensor:
    """Ones."""
    return torch.ones_like(log_ratio)


def token_truncation(log_ratio: torch.Tensor, *, cap: float) -> torch.Tensor:
    """min(pi / mu, cap) of each token by itself: little variance, a bias, since what came before is not weighed.

    TIS: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; the cut is that of
    Ionides 2008, "Truncated importance sampling".
    """
    return log_ratio.exp().clamp(max=cap)


def sequence_truncation(log_ratio: torch.Tensor, *, cap: float) -> torch.Tensor:
    """min(pi / mu, cap) of the whole completion for each of its tokens: no bias but the cut's, more variance.

    Liu et al. 2025, "When speed kills stability: demystifying RL collapse from the training-inference mismatch".
    """
    return _of_sequences(log_ratio).clamp(max=cap)


def sequence_mask(log_ratio: torch.Tensor, *, cap: float) -> torch.Tensor:
    """pi / mu of the whole completion, 0 above ``cap``: what the learner finds so much likelier is not trusted.

    Liu et al. 2025, as above; compared with the others in arXiv 2510.26788.
    """
    ratio = _of_sequences(log_ratio)
    return torch.where(ratio <= cap, ratio, 0.0)


CORRECTIONS: Mapping[str, Correction] = {
    "none": none,
    "token_truncation": token_truncation,
    "sequence_truncation": sequence_truncation,
    "sequence_mask": sequence_mask,
}


def log_ratio_of(batch: Batch, logprobs: torch.Tensor) -> torch.Tensor | None:
    """Return log pi - log mu [N, T], 0 where nothing is learnt; None where the sampler told no log-probabilities.

    ``logprobs`` are the learner's, before its first update on the batch.
    """
    if batch.sampler_logprobs is None:
        return None
    return torch.where(batch.loss_mask, logprobs.detach() - batch.sampler_logprobs, 0.0)


def corrected(batch: Batch, logprobs: torch.Tensor, correction: Correction, cap: float) -> Batch:
    """Return ``batch`` with its token weights multiplied."""
    log_ratio = log_ratio_of(batch, logprobs)
    if log_ratio is None:
        return batch
    return replace(batch, token_weights=batch.token_weights * correction(log_ratio, cap=cap))


def gap_metrics(log_ratio: torch.Tensor) -> dict[str, float]:
    """Return the metrics of log pi - log mu of all tokens of a step, [M]; none without tokens.

    The KL from mu to pi is estimated by k3, exp(d) - d - 1. The effective part of the samples is
    (sum of w)^2 / (M * sum of w^2) with w = pi / mu: 1 if all weigh the same.
    """
    if not len(log_ratio):
        return {}
    log_ratio = log_ratio.double()
    gap, ratio = log_ratio.abs(), log_ratio.exp()
    # the smallest gap that 99 in 100 do not exceed
    ordered = gap.sort().values
    return {
        "rollout/logprob_gap": gap.mean().item(),
        "rollout/logprob_gap_p99": ordered[-(len(gap) // 100) - 1].item(),
        "rollout/logprob_gap_max": gap.max().item(),
        "rollout/sampler_kl": (ratio - log_ratio - 1).mean().item(),
        "rollout/effective_frac": (ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())).item(),
    }


@dataclass
class GapGate:
    """Ends a run whose sampler and learner have been too far apart for PATIENCE steps in a row."""

    limit: float | None  # of the mean gap in nats; None: no gap is too large
    steps_over: int = 0

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Look at a step's metrics, which are the same on all ranks. Raises Mismatch."""
        gap = metrics.get("rollout/logprob_gap")
        if self.limit is None or gap is None:
            return
        self.steps_over = 0 if gap <= self.limit else self.steps_over + 1
        if self.steps_over == PATIENCE:
            raise Mismatch(
                f"sampler and learner have been {gap:.3g} nats apart on a token, more than algo.max_logprob_gap="
                f"{self.limit:g}, for {PATIENCE} steps: what is learnt is not what was sampled. Do both have the same "
                "weights, temperature and positions? If it is meant (top_p, samples of older weights), raise the limit"
            )


def _of_sequences(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.sum(dim=1, keepdim=True).exp().expand_as(log_ratio)
