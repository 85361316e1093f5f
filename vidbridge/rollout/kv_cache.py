"""Keys and values of prompts and of their completions, each prompt kept once for all its siblings; and states."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F

from vidbridge.backbones.attention_interface import Cell, State

FIRST_COLUMNS = 64  # that room is made for at first


class SharedPrefixCache:
    """Keys and values of P prompts of up to L tokens, and of W completions of each: a grid [P, W], all equally long.

    A layer has keys and values, or it is recurrent and has a state for each completion. Layers go by their index.

    Filled by one forward pass over the prompts with ``Prefill`` in the place of a mask, then by one pass for each new
    token of the whole grid with ``Decode`` there.
    """

    def __init__(self, prompt_mask: torch.Tensor, width: int):  # prompt_mask [P, L] bool, padding at the end
        self.prompt_mask, self.width = prompt_mask, width
        self.prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [P, K, L, D], K key heads
        self.grid: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [P, K, W, columns, D]
        self.states: dict[int, State] = {}  # [P * W, ..] each
        self.version = 0  # of the tensors: a captured graph is bound to them

    @property
    def columns(self) -> int:
        return next(iter(self.grid.values()))[0].shape[3] if self.grid else 0

    def reserve(self, columns: int) -> None:
        """Make room for completions of ``columns`` tokens: static tensors, doubled when they are full."""
        if columns <= self.columns:
            return
        more = max(columns, 2 * self.columns, FIRST_COLUMNS) - self.columns
        if not self.grid:
            keys, _ = next(iter(self.prompts.values()))
            num_prompts, heads, _, size = keys.shape
            empty = keys.new_empty(num_prompts, heads, self.width, 0, size)
            self.grid = dict.fromkeys(self.prompts, (empty, empty))
        self.grid = {
            layer: (F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more)))
            for layer, (keys, values) in self.grid.items()
        }
        self.version += 1

    def keep(self, prompts: torch.Tensor, slots: torch.Tensor) -> None:
        """Only these prompts [P'] and, of each, these completions [P', W']."""
        mask = self.prompt_mask[prompts]
        length = int(mask.sum(dim=1).max())  # the longest may have left
        rows = (prompts[:, None] * self.width + slots).flatten()
        self.prompt_mask, self.width = mask[:, :length], slots.shape[1]
        self.prompts = {
            layer: (keys[prompts, :, :length].contiguous(), values[prompts, :, :length].contiguous())
            for layer, (keys, values) in self.prompts.items()
        }
        self.grid = {
            layer: (_kept(keys, prompts, slots), _kept(values, prompts, slots))
            for layer, (keys, values) in self.grid.items()
        }
        self.states = {layer: tuple(each[rows] for each in state) for layer, state in self.states.items()}
        self.version += 1


def _kept(tensor: torch.Tensor, prompts: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[P, K, W, columns, D] -> [P', K, W', columns, D]."""
    return tensor.transpose(1, 2)[prompts[:, None], slots].transpose(1, 2).contiguous()


class Prefill:
    """Causal attention over prompts [P, L], whose keys and values go into ``cache``."""

    def __init__(self, cache: SharedPrefixCache):
        self.cache = cache

    def recur(self, layer: int, cell: Cell, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Every completion gets the state that its prompt ends with."""
        out, state = cell(inputs, self.cache.prompt_mask.sum(dim=1).tolist(), None)
        self.cache.states[layer] = tuple(each.repeat_interleave(self.cache.width, dim=0) for each in state)
        return out

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        # as views of transposed tensors they would be copied at every step
        self.cache.prompts[layer] = key.contiguous(), value.contiguous()
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2)


class Decode:
    """One new token of every completion: it sees its prompt, read once for all siblings, and its own past.

    ``column`` [1] is where the new token goes: a tensor, so that a captured graph can be told. ``visible`` columns are
    read, at least up to ``column``; those after it are hidden.
    """

    def __init__(self, cache: SharedPrefixCache, column: torch.Tensor, visible: int):
        self.cache, self.column, self.visible = cache, column, visible
        padding = ~cache.prompt_mask  # [P, L]
        later = torch.arange(visible, device=column.device) > column
        hidden = torch.cat([padding, later.expand(len(padding), -1)], dim=1)
        # [P, 1, 1, 1, L + visible], None if nothing is; a captured graph cannot ask
        self.hidden = hidden[:, None, None, None] if hidden.is_cuda or hidden.any() else None

    def recur(self, layer: int, cell: Cell, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        out, self.cache.states[layer] = cell(inputs, None, self.cache.states[layer])
        return out

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """query [N, H, 1, D], key and value [N, K, 1, D] with N = P * W."""
        width = self.cache.width
        prompt_keys, prompt_values = self.cache.prompts[layer]
        keys, values = self.cache.grid[layer]
        num_prompts, heads, length, size = prompt_keys.shape

        def to_grid(tensor: torch.Tensor) -> torch.Tensor:
            """[N, heads * R, 1, D] -> [P, heads, W, R, D]."""
            return tensor.view(num_prompts, width, heads, -1, size).transpose(1, 2)

        keys.index_copy_(3, self.column, to_grid(key))
        values.index_copy_(3, self.column, to_grid(value))
        queries = to_grid(query)
        together = queries.flatten(2, 3)  # [P, K, W * R, D]: one product with the prompt's keys for all siblings
        scores = torch.cat(
            [
                _product(together, prompt_keys.mT).unflatten(2, queries.shape[2:4]),  # [P, K, W, R, L]
                _product(queries, keys[:, :, :, : self.visible].mT),  # [P, K, W, R, visible]
            ],
            dim=-1,
        )
        if self.hidden is not None:
            scores.masked_fill_(self.hidden, -torch.inf)
        weights = scores.mul_(scaling).softmax(dim=-1).to(query.dtype)
        of_prompt, own = weights.split([length, self.visible], dim=-1)
        out = (of_prompt.flatten(2, 3) @ prompt_values).unflatten(2, queries.shape[2:4])
        out = out + own @ values[:, :, :, : self.visible]
        return out.transpose(1, 2).reshape(num_prompts * width, 1, -1, size)


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """one @ other in 32 bits, as attention kernels have it: large scores would lose too much in 16."""
    if one.is_cuda and one.dtype != torch.float32:
        flat = torch.bmm(one.flatten(0, -3), other.flatten(0, -3), out_dtype=torch.float32)
        return flat.unflatten(0, one.shape[:-2])
    return one.float() @ other.float()
