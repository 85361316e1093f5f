"""Attention in which G completions share one prompt.

A packed row holds whole groups, [p1 c11 .. c1G | p2 c21 .. | ..]. A token sees, of its own group and up to itself, the
prompt and its own completion, so that every completion is computed as if it stood alone after the prompt, while the
prompt is computed once. Layers that keep a state begin every completion with the one that its prompt ends with.
backbones/attention_interface.py brings these classes into the layers of transformers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.utils.rnn import pad_sequence

from vidbridge.backbones.attention_interface import Attends, Cell, State, sdpa


def packed_attention(group_ids: torch.Tensor, sibling_ids: torch.Tensor) -> Attends:
    """Return the attention of a packed row [S]: the group of each token, and its completion's number (0: prompt)."""
    kind = PackedFlex if group_ids.is_cuda else PackedSdpa
    return kind(group_ids, sibling_ids)


class Packed:
    """A packed row [S] as recurrent layers see it; attention is the subclasses'."""

    def __init__(self, group_ids: torch.Tensor, sibling_ids: torch.Tensor):
        self.group_ids, self.sibling_ids = group_ids, sibling_ids

    @cached_property
    def segments(self) -> list[list[int]]:
        """Return the lengths of the prompt and of each completion that is not empty, by group."""
        groups = self.group_ids.unique_consecutive(return_counts=True)[1].tolist()
        return [
            siblings.unique_consecutive(return_counts=True)[1].tolist() for siblings in self.sibling_ids.split(groups)
        ]

    def recur(self, layer: int, cell: Cell, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """All prompts together, then all completions, each from a copy of the state that its prompt ends with."""
        lengths = [length for segments in self.segments for length in segments]
        pieces = list(zip(*(tensor[0].split(lengths) for tensor in inputs)))
        is_prompt = [nth == 0 for segments in self.segments for nth in range(len(segments))]
        prompts = [piece for piece, first in zip(pieces, is_prompt) if first]
        completions = [piece for piece, first in zip(pieces, is_prompt) if not first]
        of_prompts, state = _recur_rows(cell, prompts, None)
        parents = [group for group, segments in enumerate(self.segments) for _ in segments[1:]]  # of completions
        of_completions: list[torch.Tensor] = []
        if parents:
            indices = torch.tensor(parents, device=self.group_ids.device)
            forked = tuple(each.index_select(0, indices) for each in state)
            of_completions, _ = _recur_rows(cell, completions, forked)
        outs = {True: iter(of_prompts), False: iter(of_completions)}
        return torch.cat([next(outs[first]) for first in is_prompt])[None]


def _recur_rows(
    cell: Cell, pieces: Sequence[Sequence[torch.Tensor]], state: State | None
) -> tuple[list[torch.Tensor], State]:
    """Return the outputs [T, ..] of each piece, which is the inputs [T, ..] of one sequence, and the states."""
    lengths = [len(piece[0]) for piece in pieces]
    outs, state = cell([pad_sequence(list(each), batch_first=True) for each in zip(*pieces)], lengths, state)
    return [out[:length] for out, length in zip(outs, lengths)], state


class PackedSdpa(Packed):
    """For CPUs: dense calls that skip what the mask would hide, for prompts by themselves and completions over both.

    A mask over the whole row would be [S, S], most of it hidden: neither groups nor completions see each other.
    Tensors are cut and joined, never indexed: that would cost more than the attention, going backward.
    """

    def __init__(self, group_ids: torch.Tensor, sibling_ids: torch.Tensor):
        super().__init__(group_ids, sibling_ids)
        self.masks = [_completion_mask(lengths) for lengths in self.segments]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        sizes = [sum(lengths) for lengths in self.segments]
        groups = zip(*(tensor[0].transpose(0, 1).split(sizes) for tensor in (query, key, value)))  # of [S, heads, D]
        outs = [
            self._group(lengths, mask, *tensors, scaling=scaling)
            for lengths, mask, tensors in zip(self.segments, self.masks, groups)
        ]
        return torch.cat(outs)[None]

    def _group(
        self,
        lengths: list[int],
        mask: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
    ) -> torch.Tensor:
        """One group [prompt | c1 .. cG]: [S, heads, D] -> [S, H, D]."""
        if len(lengths) <= 2:  # with a single completion it is an ordinary row
            return sdpa(query[None], key[None], value[None], scaling=scaling, is_causal=True)[0]
        of_prompt, of_completions = zip(*((p, c) for p, *c in (t.split(lengths) for t in (query, key, value))))
        prompt = sdpa(*(tensor[None] for tensor in of_prompt), scaling=scaling, is_causal=True)[0]
        query, key, value = (pad_sequence(pieces, batch_first=True) for pieces in of_completions)  # [G, T, heads, D]
        key, value = (
            torch.cat([given.expand(len(own), -1, -1, -1), own], dim=1)  # [G, L + T, heads, D]
            for given, own in zip(of_prompt[1:], (key, value))
        )
        rows = sdpa(query, key, value, scaling=scaling, attn_mask=mask.to(query.dtype)).unbind()
        return torch.cat([prompt, *(row[:length] for row, length in zip(rows, lengths[1:]))])


def _completion_mask(lengths: list[int]) -> torch.Tensor:
    """Return what is added to scores [G, 1, T, L + T]: each completion sees the prompt and its own past.

    Padding stands at the end of a completion, where its own past hides it from all that counts.
    """
    prompt, *completions = lengths
    longest = max(completions, default=0)
    hidden = torch.ones(longest, longest, dtype=torch.bool).triu(1)
    own = torch.zeros(longest, longest).masked_fill_(hidden, -torch.inf)
    return torch.cat([torch.zeros(longest, prompt), own], dim=1)[None, None]


_SMALLEST_HEAD = 16  # numbers
_compiled_flex_attention = torch.compile(flex_attention)
_compiled_block_mask = torch.compile(create_block_mask)  # uncompiled, it would hold the dense mask for a moment


class PackedFlex(Packed):
    """For GPUs: one kernel over the packed row that skips the blocks in which nothing is seen."""

    def __init__(self, group_ids: torch.Tensor, sibling_ids: torch.Tensor):
        super().__init__(group_ids, sibling_ids)

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
        size = query.shape[-1]
        if size < _SMALLEST_HEAD:  # which the compiled kernel refuses; zeros change no score
            query, key, value = (F.pad(each, (0, _SMALLEST_HEAD - size)) for each in (query, key, value))
        out = run(query, key, value, block_mask=self.block_mask, scale=scaling, enable_gqa=True)
        return out[..., :size].transpose(1, 2)
