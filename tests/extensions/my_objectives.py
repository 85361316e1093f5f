"""CISPO (arXiv 2506.13585): the ratio is clipped as a weight, so that no token loses its gradient. And others."""

import torch

from vidbridge.algo.objectives import TokenLosses


def cispo(logprobs, *, old_logprobs, advantages, loss_mask, clip_low, clip_high):
    weight = torch.where(loss_mask, logprobs - old_logprobs, 0.0).exp().detach().clamp(max=1 + clip_high)
    return TokenLosses(-weight * advantages[:, None] * logprobs, {"policy/weight_max": weight.max().item()})


def two_sided(log_ratio, *, cap):
    """IcePop (arXiv 2510.18855): a token that either side finds much likelier than the other does not count."""
    return torch.where(log_ratio.abs().exp() <= cap, log_ratio.exp(), 0.0)


def task_range(rewards, scored, tasks):
    """What the best and the worst of a task lie apart."""
    found = [rewards[tasks == task] for task in tasks]
    return torch.stack([each.max() - each.min() + 1e-4 for each in found])[:, None]
