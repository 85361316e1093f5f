"""Policy objectives: what a token costs, by name, and the loss that an update differentiates.

``algo.objective`` names one of OBJECTIVES, or a function of one's own by its dotted name.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Protocol

import torch

from vidbridge.types import LossOutput


class TokenLosses(NamedTuple):
    losses: torch.Tensor  # [N, T], carries the gradient; what stands on padding weighs nothing
    metrics: Mapping[str, float]  # policy/..


class Objective(Protocol):
    def __call__(
        self,
        logprobs: torch.Tensor,  # [N, T], carries the gradient
        *,
        old_logprobs: torch.Tensor,  # [N, T] of the policy that sampled
        advantages: torch.Tensor,  # [N], one for all tokens of a completion
        loss_mask: torch.Tensor,  # [N, T] bool
        clip_low: float,
        clip_high: float,
    ) -> TokenLosses:
        """Return the loss of every token, before weighting and the KL penalty."""


def clipped(
    logprobs: torch.Tensor,
    *,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> TokenLosses:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), each token by itself.

    GRPO (arXiv 2402.03300) equation 3 with the two-sided clip of DAPO (arXiv 2503.14476) equation 10. On policy the
    ratio is 1 and its gradient that of the log-probability.
    """
    # mask before exp: padding may hold -inf or anything, and 0 * inf is nan in the gradient too
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, 0.0)
    return _clipped(log_ratio.exp(), advantages, loss_mask, clip_low, clip_high)


def clipped_sequence(
    logprobs: torch.Tensor,
    *,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    loss_mask: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> TokenLosses:
    """``clipped`` with one ratio a completion, the geometric mean over its tokens.

    GSPO (arXiv 2507.18071) equation 7.
    """
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, 0.0)
    log_ratio = log_ratio.sum(dim=1, keepdim=True) / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return _clipped(torch.where(loss_mask, log_ratio, 0.0).exp(), advantages, loss_mask, clip_low, clip_high)


OBJECTIVES: Mapping[str, Objective] = {"clipped": clipped, "clipped_sequence": clipped_sequence}


def grpo_loss(
    logprobs: torch.Tensor,  # [N, T], carries the gradient
    *,
    old_logprobs: torch.Tensor | None,  # [N, T] of the policy that sampled; None: it is this one
    ref_logprobs: torch.Tensor | None,  # [N, T] of the frozen reference; needed when kl_beta > 0
    advantages: torch.Tensor,  # [N], one for all tokens of a completion
    loss_mask: torch.Tensor,  # [N, T] bool
    token_weights: torch.Tensor,  # [N, T] from token_weights()
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    objective: Objective = clipped,
) -> LossOutput:
    """Return the sum of weight * (token loss + kl_beta * kl), and what to log about it.

    ``kl`` is the k3 estimate exp(d) - d - 1 with d = ref - policy, unbiased and never negative: GRPO (arXiv
    2402.03300) equation 4.
    """
    assert kl_beta == 0 or ref_logprobs is not None, "kl_beta needs ref_logprobs"
    losses, metrics = objective(
        logprobs,
        old_logprobs=logprobs.detach() if old_logprobs is None else old_logprobs,
        advantages=advantages,
        loss_mask=loss_mask,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    if ref_logprobs is not None:
        drift = torch.where(loss_mask, ref_logprobs - logprobs, 0.0)
        kl = drift.exp() - drift - 1
        losses = losses + kl_beta * kl
        metrics = {**metrics, "policy/kl": (kl.detach().sum() / loss_mask.sum().clamp(min=1)).item()}
    return LossOutput(loss=(token_weights * losses).sum(), metrics=metrics)


def _clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, loss_mask: torch.Tensor, clip_low: float, clip_high: float
) -> TokenLosses:
    gain = advantages[:, None]
    losses = -torch.minimum(ratio * gain, ratio.clamp(1 - clip_low, 1 + clip_high) * gain)
    num_tokens = loss_mask.sum().clamp(min=1)
    # the sides on which the minimum takes the clipped branch, so that the token has no gradient
    held_low = loss_mask & (ratio < 1 - clip_low) & (gain < 0)
    held_high = loss_mask & (ratio > 1 + clip_high) & (gain > 0)
    metrics = {
        "policy/clip_low_frac": (held_low.sum() / num_tokens).item(),
        "policy/clip_high_frac": (held_high.sum() / num_tokens).item(),
        "policy/ratio_max": torch.where(loss_mask, ratio.detach(), 0.0).max().item(),
    }
    return TokenLosses(losses, metrics)
