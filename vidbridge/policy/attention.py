"""Attention in which G completions share one prompt, and the windows of a video are computed together.

A packed row holds whole groups, [p1 c11 .. c1G | p2 c21 .. | ..]. A token sees, of its own group and up to itself, the
prompt and its own completion, so that every completion is computed as if it stood alone after the prompt, while the
prompt is computed once. transformers runs these classes inside the unmodified model: they are passed where a mask goes.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
WINDOWS = "flash_windows"  # with "flash" in its name, transformers hands over all windows in one call


@runtime_checkable
class Attends(Protocol):
    """Takes the place of a mask: one object for all layers of one forward pass."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [B, H, S, D]
        key: torch.Tensor,  # [B, K, S, D], K key heads, each shared by H / K query heads
        value: torch.Tensor,  # [B, K, S, D]
        scaling: float,
    ) -> torch.Tensor:  # [B, S, H, D]
        """What transformers calls an attention interface, with the layer's number."""


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if isinstance(attention_mask, Attends):
        layer = module.layer_idx
        assert isinstance(layer, int)
        return attention_mask.attend(layer, query, key, value, scaling), None
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
    """For the vision tower: windows of the same size in one call, where transformers would make one for each."""
    bounds = cu_seq_lens_q.cpu()
    starts, lengths = bounds[:-1], bounds.diff()
    tensors = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [S, H, D]
    places, outs = [], []
    for length in lengths.unique().tolist():
        windows = (starts[lengths == length][:, None] + torch.arange(length)).to(tensors[0].device)
        query, key, value = (_take(tensor, windows) for tensor in tensors)  # [n, length, H, D]
        outs.append(_sdpa(query, key, value, scaling).flatten(0, 1))
        places.append(windows.flatten())
    return torch.cat(outs).index_select(0, torch.cat(places).argsort())[None], None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionInterface.register(WINDOWS, _attend_in_windows)


def enable_shared_prefix(module: PreTrainedModel) -> None:
    """From now on the language model of ``module`` understands an ``Attends`` in the place of a mask."""
    module.model.language_model.config._attn_implementation = NAME
    if module.model.visual.config._attn_implementation == "sdpa":
        module.model.visual.config._attn_implementation = WINDOWS


def last_hidden(
    module: PreTrainedModel, embeddings: torch.Tensor, position_ids: torch.Tensor, attention: Attends
) -> torch.Tensor:
    """Final hidden states [B, S, hidden] of input embeddings [B, S, hidden] at mRoPE positions [3, B, S]."""
    return module.model.language_model(
        inputs_embeds=embeddings,
        position_ids=position_ids,
        attention_mask=dict.fromkeys(("full_attention", "sliding_attention"), attention),
        use_cache=False,
    ).last_hidden_state


def packed_attention(group_ids: torch.Tensor, sibling_ids: torch.Tensor) -> Attends:
    """For a packed row [S]: the group of each token, and its completion's number from 1 (0: the prompt)."""
    kind = PackedFlex if group_ids.is_cuda else PackedSdpa
    return kind(group_ids, sibling_ids)


class PackedSdpa:
    """For CPUs: two dense calls that skip what the mask would hide, prompts by themselves and completions over both.

    A mask over the whole row would be [S, S], most of it hidden: completions do not see each other.
    """

    def __init__(self, group_ids: torch.Tensor, sibling_ids: torch.Tensor):
        starts = (group_ids.diff(prepend=group_ids[:1] - 1) != 0) | (sibling_ids.diff(prepend=sibling_ids[:1]) != 0)
        segments = torch.arange(len(group_ids)).tensor_split(starts.nonzero().flatten()[1:])
        prompts = [places for places in segments if sibling_ids[places[0]] == 0]
        completions = [places for places in segments if sibling_ids[places[0]] > 0]
        # padding repeats the row's first token: as a query its result is left out, as a key it is hidden
        self.prompts = pad_sequence(prompts, batch_first=True)  # [P, L]
        self.completions = pad_sequence(completions, batch_first=True) if completions else None  # [N, T]
        real = [_real(segments).flatten() for segments in (prompts, completions) if segments]
        computed = torch.cat(real).nonzero().flatten()  # where in the results below, without the padding
        self.places = computed[torch.cat(prompts + completions).argsort()]  # [S]
        if self.completions is not None:
            self.row_prompt = torch.tensor([int(group_ids[places[0]]) for places in completions])  # [N]
            num_rows, width = self.completions.shape
            own = torch.ones(width, width, dtype=torch.bool).tril().expand(num_rows, -1, -1)
            given = _real(prompts)[self.row_prompt][:, None].expand(-1, width, -1)
            sees = torch.cat([given, own], dim=2)[:, None]  # [N, 1, T, L + T]
            self.mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)  # once for all layers

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        tensors = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [S, heads, D]
        query, key, value = (_take(tensor, self.prompts) for tensor in tensors)  # [P, L, heads, D]
        # padding stands at the end, where a causal mask hides it
        parts = [_sdpa(query, key, value, scaling, is_causal=True).flatten(0, 1)]
        if self.completions is not None:
            given = (tensor.index_select(0, self.row_prompt) for tensor in (key, value))
            query, key, value = (_take(tensor, self.completions) for tensor in tensors)  # [N, T, heads, D]
            key, value = (torch.cat(pair, dim=1) for pair in zip(given, (key, value)))  # [N, L + T, heads, D]
            parts.append(_sdpa(query, key, value, scaling, attn_mask=self.mask.to(query.dtype)).flatten(0, 1))
        return torch.cat(parts).index_select(0, self.places)[None]


def _take(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """tensor[places]; on a CPU, unlike that, its gradient is added up in the same order every time."""
    return tensor.index_select(0, places.flatten()).unflatten(0, places.shape)


_compiled_flex_attention = torch.compile(flex_attention)
_compiled_block_mask = torch.compile(create_block_mask)  # uncompiled, it would hold the dense mask for a moment


class PackedFlex:
    """For GPUs: one kernel over the packed row that skips the blocks in which nothing is seen."""

    def __init__(self, group_ids: torch.Tensor, sibling_ids: torch.Tensor):
        def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            shared = (sibling_ids[key] == 0) | (sibling_ids[key] == sibling_ids[query])
            return (query >= key) & (group_ids[query] == group_ids[key]) & shared

        length = len(group_ids)
        make = _compiled_block_mask if group_ids.is_cuda else create_block_mask
        self.block_mask = make(sees, None, None, length, length, device=group_ids.device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        run = _compiled_flex_attention if query.is_cuda else flex_attention
        out = run(query, key, value, block_mask=self.block_mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2)


def _real(segments: list[torch.Tensor]) -> torch.Tensor:
    """[R, longest] bool, False on padding."""
    lengths = torch.tensor([len(places) for places in segments])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, **mask: Any) -> torch.Tensor:
    """query [B, S, H, D], key and value [B, L, K, D] -> [B, S, H, D]."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **mask)
    return out.transpose(1, 2)
