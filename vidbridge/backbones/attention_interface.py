"""How our attention gets into the unmodified layers of transformers.

The language model is given an object that attends (``shared_prefix=..``), which every layer hands on to the attention
interface registered here. Without one, as when ``generate`` calls, the interface is the library's own. Layers that keep
a state instead of keys and values ask the same object where each state goes on.
"""

from __future__ import annotations

from typing import Any, Protocol, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
WINDOWS = "flash_windows"  # with "flash" in its name, transformers hands over all windows in one call


State = tuple[torch.Tensor, ...]  # of a recurrent layer: [N, ..] each, a row for each sequence


class Cell(Protocol):
    """The arithmetic of one recurrent layer on N sequences of up to T tokens."""

    def __call__(
        self,
        inputs: Sequence[torch.Tensor],  # [N, T, ..]
        lengths: Sequence[int] | None,  # tokens of each sequence, the rest is padding; None: all have T
        state: State | None,  # that the sequences begin with; None: at nothing
    ) -> tuple[torch.Tensor, State]:
        """Return the outputs [N, T, ..] and the state that each sequence ends with."""


class Attends(Protocol):
    """One object for all layers of one forward pass; it knows which tokens see which."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [B, H, S, D]
        key: torch.Tensor,  # [B, K, S, D], K key heads, each shared by H / K query heads
        value: torch.Tensor,  # [B, K, S, D]
        scaling: float,
    ) -> torch.Tensor:  # [B, S, H, D]
        """Return the attention of one layer."""

    def recur(self, layer: int, cell: Cell, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the outputs [B, S, ..] of a recurrent layer for ``inputs`` [B, S, ..]."""


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    shared_prefix: Attends | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if shared_prefix is not None:
        layer = module.layer_idx
        assert isinstance(layer, int)
        return shared_prefix.attend(layer, query, key, value, scaling), None
    # somebody else's call (generate): an ordinary mask
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def _attend_in_windows(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, S, D]
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,  # [W + 1], where the windows begin and end
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of the vision tower, in one call for all windows of the same size."""
    lengths = cu_seq_lens_q.diff().tolist()
    if len(set(lengths)) == 1:  # nothing need be sorted, nor copied
        alike = (tensor[0].transpose(0, 1).unflatten(0, (-1, lengths[0])) for tensor in (query, key, value))
        return sdpa(*alike, scaling=scaling).flatten(0, 1)[None], None
    pieces = [tensor[0].transpose(0, 1).split(lengths) for tensor in (query, key, value)]  # windows of [length, H, D]
    outs: list[torch.Tensor] = [query] * len(lengths)
    for length in set(lengths):
        windows = [index for index, each in enumerate(lengths) if each == length]
        alike = (torch.stack([piece[index] for index in windows]) for piece in pieces)  # [n, length, H, D]
        for index, out in zip(windows, sdpa(*alike, scaling=scaling).unbind()):
            outs[index] = out
    return torch.cat(outs)[None], None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(WINDOWS, _attend_in_windows)


def use_our_attention(text_model: Any, vision_tower: Any) -> None:
    """Change both: the language model takes ``shared_prefix=``, a tower on sdpa computes its windows together."""
    text_model.config._attn_implementation = NAME
    if vision_tower.config._attn_implementation == "sdpa":
        vision_tower.config._attn_implementation = WINDOWS


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, **mask: Any) -> torch.Tensor:
    """Return the attention [B, S, H, D] of query [B, S, H, D] to key and value [B, L, K, D]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **mask)
    return out.transpose(1, 2)
