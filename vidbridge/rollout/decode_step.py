"""The model's side of sampling: prompts are read once each, then all completions get their next token together."""

from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from vidbridge.backbones import backbone_of
from vidbridge.backbones.layers import linear
from vidbridge.rollout.kv_cache import Decode, Prefill, SharedPrefixCache
from vidbridge.types import EncodedPrompt


def prefill(
    module: PreTrainedModel, prompts: Sequence[EncodedPrompt], width: int, *, pad_id: int
) -> tuple[SharedPrefixCache, torch.Tensor]:
    """Read every prompt once: a cache with room for ``width`` completions each, and the logits [P, V] that follow."""
    ids = pad_sequence([p.input_ids for p in prompts], batch_first=True, padding_value=pad_id)
    positions = pad_sequence([p.position_ids.T for p in prompts], batch_first=True).permute(2, 0, 1)
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    tensors = (
        ids,
        positions,
        torch.arange(ids.shape[1]) < lengths[:, None],
        torch.cat([p.pixel_values for p in prompts]),
        torch.cat([p.grid_thw for p in prompts]),
        lengths - 1,
    )
    ids, positions, mask, pixels, grids, last = (tensor.to(module.device) for tensor in tensors)
    cache = SharedPrefixCache(mask, width)
    backbone = backbone_of(module.config.model_type)
    hidden = backbone.hidden(module, ids, pixels, grids, positions, Prefill(cache))
    return cache, module.lm_head(hidden[torch.arange(len(prompts), device=module.device), last])


class DecodeStep:
    """The forward pass for the newest token of every completion: on a GPU one captured graph, launched as a whole."""

    def __init__(self, module: PreTrainedModel, cache: SharedPrefixCache):
        self.module, self.cache = module, cache
        self.backbone = backbone_of(module.config.model_type)
        self._captured_for: int | None = None  # version of the cache

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor, column: int) -> torch.Tensor:
        """token_ids [N] and their positions [N] go to ``column`` of the cache -> logits [N, V] of the next token."""
        self.cache.reserve(column + 1)
        # filled there: a tensor made of a Python number would be waited for
        inputs = (token_ids, positions, torch.full((1,), column, device=token_ids.device))
        if not (token_ids.is_cuda and self.backbone.can_be_captured):
            return self._forward(inputs, visible=column + 1)
        if self._captured_for != self.cache.version:
            self._capture(inputs)
            self._captured_for = self.cache.version
        for static, new in zip(self._inputs, inputs):
            static.copy_(new)
        self._graph.replay()
        return self._logits

    def _forward(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], visible: int) -> torch.Tensor:
        token_ids, positions, column = inputs
        attention = Decode(self.cache, column, visible)
        hidden = self.backbone.next_hidden(self.module, token_ids, positions, attention)
        return linear(self.module.lm_head, hidden)

    def _capture(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        token_ids, positions, column = inputs
        self._inputs = token_ids.clone(), positions.clone(), column.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(token_ids.device):  # it may not be the current one
            stream = _capture_stream(token_ids.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # once outside: what libraries set up on first use must not become part of the graph. It writes what
                # the replay will write again.
                self._forward(self._inputs, visible=self.cache.columns)
            torch.cuda.current_stream().wait_stream(stream)
            # other threads may use the device meanwhile, as the one does that watches over nccl
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._logits = self._forward(self._inputs, visible=self.cache.columns)


@lru_cache(maxsize=None)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace of some 30 MB for every stream that it has ever met."""
    return torch.cuda.Stream(device)
