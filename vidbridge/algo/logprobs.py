"""How likely the policy was to write the tokens that it wrote."""

from __future__ import annotations

import torch


def token_logprobs(
    logits: torch.Tensor,  # [N, T, V], logits[:, t] predict ids[:, t]
    ids: torch.Tensor,  # [N, T] int64
    temperature: float,
    suppressed: torch.Tensor | None,  # [K] int64, token ids that the sampler never draws
) -> tuple[torch.Tensor, torch.Tensor]:  # [N, T], [N, T] float32, in nats
    """Log-probability of each token, and the entropy at each place (for logging: it carries no gradient).

    The policy is the distribution that the sampler drew from, so the same temperature and the same
    suppressed tokens apply here. A suppressed token has log-probability -inf; where ``ids`` is padding
    the caller's mask must hide it.
    """
    scaled = logits.float() / temperature
    if suppressed is not None:
        scaled = scaled.index_fill(-1, suppressed, -torch.inf)
    log_norm = scaled.logsumexp(dim=-1)
    # picking before normalising spares a second [N, T, V] tensor in the graph
    picked = scaled.gather(-1, ids[..., None]).squeeze(-1)
    return picked - log_norm, _entropy(scaled.detach(), log_norm.detach())


def _entropy(scaled: torch.Tensor, log_norm: torch.Tensor) -> torch.Tensor:
    """-sum p log p, row by row so that only [T, V] is held; p log p of a suppressed token is 0, not nan."""
    rows = []
    for row, norm in zip(scaled, log_norm):
        logprobs = row - norm[:, None]
        rows.append(-(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1))
    return torch.stack(rows)
