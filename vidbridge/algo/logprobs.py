"""How likely the policy was to write the tokens that it wrote."""

from __future__ import annotations

from typing import Any, Iterator

import torch

_CHUNK_VALUES = 2**26  # logits held at a time: 256 MB in 32 bits, and as much again for their gradient


def linear_logprobs(
    hidden: torch.Tensor,  # [M, D] hidden states that predict ``ids``
    weight: torch.Tensor,  # [V, D] of the vocabulary projection
    ids: torch.Tensor,  # [M] int64
    temperature: float,
    suppressed: torch.Tensor,  # [K] int64, token ids that the sampler never draws
    chunk_size: int | None = None,  # tokens at a time; None: as many as 2**26 logits allow
) -> tuple[torch.Tensor, torch.Tensor]:  # [M], [M] float32, in nats
    """Log-probability of each token, and the entropy at each token (for logging: it carries no gradient).

    The policy is the distribution that the sampler drew from, so the same temperature and the same
    suppressed tokens apply here. Logits [M, V] would be the largest tensor of all (8 completions of 2048 tokens
    and 152,000 words: 10 GB), so they never exist at once: chunk by chunk, and once more for the gradient.
    """
    size = chunk_size or max(1, _CHUNK_VALUES // len(weight))
    logprobs, entropy = _LinearLogprobs.apply(hidden, weight, ids, temperature, suppressed, size)
    return logprobs, entropy


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        temperature: float,
        suppressed: torch.Tensor,
        size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, log_norms, entropies = (torch.empty(len(ids), device=hidden.device) for _ in range(3))
        for rows in _chunks(len(ids), size):
            scaled = _scaled_logits(hidden[rows], weight, temperature, suppressed)
            log_norms[rows] = scaled.logsumexp(dim=-1)
            logprobs[rows] = scaled.gather(1, ids[rows, None]).squeeze(1) - log_norms[rows]
            entropies[rows] = _entropy_(scaled, log_norms[rows])
        ctx.save_for_backward(hidden, weight, ids, suppressed, log_norms)
        ctx.temperature, ctx.size = temperature, size
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """d logprob / d logits = one_hot - softmax."""
        hidden, weight, ids, suppressed, log_norms = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # in 32 bits, because many chunks add up
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(ids), ctx.size):
            scaled = _scaled_logits(hidden[rows], weight, ctx.temperature, suppressed)
            scaled.sub_(log_norms[rows, None]).exp_().mul_(-grad[rows, None])
            scaled.scatter_add_(1, ids[rows, None], grad[rows, None])
            grad_logits = scaled.div_(ctx.temperature).to(weight.dtype)
            grad_hidden[rows] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, start + size)


def _scaled_logits(
    hidden: torch.Tensor, weight: torch.Tensor, temperature: float, suppressed: torch.Tensor
) -> torch.Tensor:
    """[m, V] float32, -inf for the suppressed tokens."""
    return (hidden @ weight.T).float().div_(temperature).index_fill_(1, suppressed, -torch.inf)


def _entropy_(scaled: torch.Tensor, log_norm: torch.Tensor) -> torch.Tensor:
    """-sum p log p [m], overwriting ``scaled`` [m, V]; p log p of a suppressed token is 0, not nan."""
    scaled.sub_(log_norm[:, None]).clamp_(min=torch.finfo(scaled.dtype).min)
    return -(scaled.exp() * scaled).sum(dim=-1)
