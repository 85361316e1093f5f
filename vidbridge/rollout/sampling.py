"""From log-probabilities to a token."""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, Sequence

import numpy as np
import torch

from vidbridge.types import SamplingParams


def uniforms_of(seed: int, indices: Sequence[int], group_size: int, num_tokens: int) -> torch.Tensor:
    """Numbers [N, T] in [0, 1), ``group_size`` rows for each prompt; those of prompt i come from (seed, i) alone."""
    drawn = [np.random.default_rng([seed, index]).random((group_size, num_tokens)) for index in indices]
    return torch.from_numpy(np.concatenate(drawn))


def choose(
    logprobs: torch.Tensor, uniforms: torch.Tensor | None, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token id [N] for each row of log-probabilities [N, V], and its log-probability [N].

    Without ``uniforms`` [N] it is the likeliest, with the log-probability that it has among all; else it is drawn, and
    has the one that it was drawn with: among those that top-p and min-p leave.
    """
    if uniforms is None:
        token = logprobs.argmax(dim=-1)
    else:
        if sampling.top_p < 1 or sampling.min_p > 0:
            logprobs = truncate(logprobs, top_p=sampling.top_p, min_p=sampling.min_p).log_softmax(dim=-1)
        token = draw(logprobs, uniforms)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token id [N] for each row of log-probabilities [N, V], from uniform numbers [N] in [0, 1).

    The smallest id whose cumulative probability exceeds the number; added up in 64 bits, so that rounding over a large
    vocabulary cannot reach a token of probability zero. The rows need not be normalised.
    """
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True).squeeze(1)


def truncate(logprobs: torch.Tensor, *, top_p: float, min_p: float) -> torch.Tensor:
    """-inf for the tokens [N, V] that may not be drawn; the likeliest always may.

    ``top_p`` keeps the fewest tokens that together reach that probability (arXiv 1904.09751), ``min_p`` those at least
    that fraction as likely as the likeliest (arXiv 2407.01082). 1 and 0 keep all.

    >>> truncate(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), top_p=0.7, min_p=0.0).exp()
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    >>> truncate(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), top_p=1.0, min_p=0.2).exp()
    tensor([[0.5000, 0.3000, 0.1500, 0.0000]])
    """
    if min_p > 0:
        logprobs = logprobs.masked_fill(logprobs.exp() < min_p * logprobs.exp().amax(dim=-1, keepdim=True), -torch.inf)
    if top_p < 1:
        ordered, order = logprobs.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        reached = ordered.cumsum(dim=-1) - ordered >= top_p  # by the more likely ones alone
        logprobs = logprobs.masked_fill(torch.zeros_like(reached).scatter(1, order, reached), -torch.inf)
    return logprobs


class StopStrings:
    """Tells which rows have just written the last character of one of ``strings``."""

    def __init__(self, strings: Sequence[str], decode: Callable[[Sequence[int]], str]):
        self.strings, self.decode = tuple(strings), decode
        # tokens hold at least a byte each; a few more, so that the first character is whole
        self.reach = max(len(string.encode()) for string in self.strings) + 4
        self.may_end = lru_cache(maxsize=None)(self._may_end)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [N, t], none of them complete before its newest token -> [N] bool."""
        ends = torch.zeros(len(ids), dtype=torch.bool)
        for row, token in enumerate(ids[:, -1].tolist()):
            if self.may_end(token):  # rarely: most tokens need no decoding
                tail = self.decode(ids[row, -self.reach :].tolist())
                ends[row] = any(string in tail for string in self.strings)
        return ends.to(ids.device)

    def _may_end(self, token: int) -> bool:
        text = self.decode([token])
        part_of_character = "\ufffd" in text
        return part_of_character or any(string[-1] in text for string in self.strings)
