"""The model's side of sampling: prompts are read once each, then all completions get their next token together."""

from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from vidbridge.policy.attention import Attends, last_hidden
from vidbridge.policy.qwen_vl import embed
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
        torch.cat([p.video_grid_thw for p in prompts]),
        lengths - 1,
    )
    ids, positions, mask, pixels, grids, last = (tensor.to(module.device) for tensor in tensors)
    cache = SharedPrefixCache(mask, width)
    hidden = last_hidden(module, embed(module, ids, pixels, grids), positions, Prefill(cache))
    return cache, module.lm_head(hidden[torch.arange(len(prompts), device=module.device), last])


class DecodeStep:
    """The forward pass for the newest token of every completion: on a GPU one captured graph, launched as a whole."""

    def __init__(self, module: PreTrainedModel, cache: SharedPrefixCache):
        self.module, self.cache = module, cache
        self._captured_for: int | None = None  # version of the cache

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor, column: int) -> torch.Tensor:
        """token_ids [N] and their positions [N] go to ``column`` of the cache -> logits [N, V] of the next token."""
        self.cache.reserve(column + 1)
        # filled there: a tensor made of a Python number would be waited for
        inputs = (token_ids, positions, torch.full((1,), column, device=token_ids.device))
        if not token_ids.is_cuda:
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
        hidden = next_hidden(self.module.model.language_model, token_ids, positions, attention)
        return _linear(self.module.lm_head, hidden)

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


def next_hidden(
    model: Qwen2_5_VLTextModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
) -> torch.Tensor:
    """Final hidden states [N, hidden] of one token [N] a row at text positions [N].

    The layers of Qwen2.5 written out: with few rows, what transformers does around the arithmetic of a token takes as
    long as the arithmetic.
    """
    hidden = model.embed_tokens(token_ids)
    # at text positions mRoPE is RoPE: all three of its positions are the same
    rotary = model.rotary_emb
    angles = positions[:, None, None].float() * rotary.inv_freq.float()  # [N, 1, D / 2]
    cos, sin = ((turn * rotary.attention_scaling).to(hidden.dtype) for turn in (angles.cos(), angles.sin()))
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    for number, layer in enumerate(model.layers):
        own, mlp = layer.self_attn, layer.mlp
        normed = _normed(layer.input_layernorm, hidden)
        query, key, value = (
            _linear(each, normed).unflatten(1, (-1, own.head_dim)) for each in (own.q_proj, own.k_proj, own.v_proj)
        )  # [N, heads, D]
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        seen = attention.attend(number, query[:, :, None], key[:, :, None], value[:, :, None], own.scaling)
        hidden = hidden + _linear(own.o_proj, seen.flatten(1))
        normed = _normed(layer.post_attention_layernorm, hidden)
        gate, up = _linear(mlp.gate_proj, normed), _linear(mlp.up_proj, normed)
        hidden = hidden + _linear(mlp.down_proj, mlp.act_fn(gate) * up)
    return _normed(model.norm, hidden)


def _normed(layer: Qwen2_5_VLRMSNorm, rows: torch.Tensor) -> torch.Tensor:
    """``layer(rows)``; of a plain Qwen2_5_VLRMSNorm in one operation."""
    if not _is_plain(layer, Qwen2_5_VLRMSNorm):
        return layer(rows)
    return F.rms_norm(rows, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: heads [N, heads, D], cos and sin [N, 1, D]; of the sines the first half is negated."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def _linear(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """``layer(rows)``. A CPU multiplies a tall matrix by few columns faster than few rows by a wide one."""
    if rows.is_cuda or not _is_plain(layer, nn.Linear) or layer.out_features < layer.in_features:
        return layer(rows)
    out = (layer.weight @ rows.T).T
    return out if layer.bias is None else out + layer.bias


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Does ``layer`` do what its class does, with its own weight? An adapter that wraps or hooks it must be called."""
    return type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks
