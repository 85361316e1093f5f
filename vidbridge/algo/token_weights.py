"""How the tokens of an update are weighed against each other."""

from __future__ import annotations

from enum import Enum

import torch


class LossNorm(str, Enum):
    """The denominator of a token's loss."""

    token = "token"  # all tokens of the batch: DAPO (arXiv 2503.14476) equation 8
    sequence = "sequence"  # its own completion's length, then the rows: GRPO (arXiv 2402.03300) equation 3
    constant = "constant"  # the longest length allowed, then the rows: Dr. GRPO (arXiv 2503.20783)


def token_weights(
    loss_mask: torch.Tensor,  # [N, T] bool, the whole batch of one update
    norm: LossNorm,
    max_completion_tokens: int,
) -> torch.Tensor:  # [N, T] float32, zero off the mask
    """Return the share of each token in the loss of one update.

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
