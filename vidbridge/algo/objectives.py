"""The clipped policy objective, and how its tokens are weighed against each other."""

from __future__ import annotations

from enum import Enum

import torch

from vidbridge.types import LossOutput


class LossNorm(str, Enum):
    """What a token's loss is divided by."""

    token = "token"  # all tokens of the batch: DAPO (arXiv 2503.14476) equation 8
    sequence = "sequence"  # its own completion's length, then the rows: GRPO (arXiv 2402.03300) equation 3
    constant = "constant"  # the longest length allowed, then the rows: Dr. GRPO (arXiv 2503.20783)


class RatioLevel(str, Enum):
    """What is compared with the policy that sampled, and clipped."""

    token = "token"  # every token by itself: PPO, GRPO, DAPO
    sequence = "sequence"  # the whole completion, per token: GSPO (arXiv 2507.18071)


def token_weights(
    loss_mask: torch.Tensor,  # [N, T] bool, the whole batch of one update
    norm: LossNorm,
    max_completion_tokens: int,
) -> torch.Tensor:  # [N, T] float32, zero off the mask
    """The share of each token in the loss of one update.

    Made once from the whole batch and then cut up with it: every denominator is global, so the losses
    of micro-batches add up to the loss of the batch, however it is cut. A row without tokens weighs
    nothing but counts as a row.
    """
    mask = loss_mask.float()
    rows = loss_mask.shape[0]
    if norm is LossNorm.token:
        return mask / mask.sum().clamp(min=1)
    if norm is LossNorm.sequence:
        return mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * rows)
    return mask / (max_completion_tokens * rows)


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
    ratio_level: RatioLevel = RatioLevel.token,
) -> LossOutput:
    """sum of weight * (-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) + kl_beta * kl).

    GRPO (arXiv 2402.03300) equations 3 and 4, with the two-sided clip of DAPO (arXiv 2503.14476)
    equation 10. On policy the ratio is 1 and its gradient that of the log-probability. At the level of the
    sequence it is the geometric mean over the completion's tokens: GSPO (arXiv 2507.18071) equation 7. ``kl`` is
    the k3 estimate exp(d) - d - 1 with d = ref - policy: unbiased and never negative.
    """
    assert kl_beta == 0 or ref_logprobs is not None, "kl_beta needs ref_logprobs"
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    # mask before exp: padding may hold -inf or anything, and 0 * inf is nan in the gradient too
    log_ratio = torch.where(loss_mask, logprobs - old, 0.0)
    if ratio_level is RatioLevel.sequence:
        log_ratio = log_ratio.sum(dim=1, keepdim=True) / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(loss_mask, log_ratio, 0.0)
    ratio = log_ratio.exp()
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
    if ref_logprobs is not None:
        drift = torch.where(loss_mask, ref_logprobs - logprobs, 0.0)
        kl = drift.exp() - drift - 1
        losses = losses + kl_beta * kl
        metrics["policy/kl"] = (kl.detach().sum() / num_tokens).item()
    return LossOutput(loss=(token_weights * losses).sum(), metrics=metrics)
