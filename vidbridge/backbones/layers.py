"""Decoder layers of the Qwen kind written out for one new token a row.

With few rows, what transformers does around the arithmetic of a token takes as long as the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vidbridge.backbones.attention_interface import Attends


def next_hidden(
    model: Any, norm_class: type[nn.Module], token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
) -> torch.Tensor:
    """Return the final hidden states [N, hidden] of one token [N] a row at text positions [N].

    ``model`` is the language model; its norms are of ``norm_class``, which divides by the root mean square.
    """

    def normed(layer: Any, rows: torch.Tensor) -> torch.Tensor:
        if not _is_plain(layer, norm_class):
            return layer(rows)
        return F.rms_norm(rows, layer.weight.shape, layer.weight, layer.variance_epsilon)

    hidden = model.embed_tokens(token_ids)
    cos, sin = _turns(model.rotary_emb, positions, hidden.dtype)
    for number, layer in enumerate(model.layers):
        own = layer.self_attn
        rows = normed(layer.input_layernorm, hidden)
        query, key, value = (
            linear(each, rows).unflatten(1, (-1, own.head_dim)) for each in (own.q_proj, own.k_proj, own.v_proj)
        )  # [N, heads, D]
        if hasattr(own, "q_norm"):  # Qwen3: each head by itself
            query, key = normed(own.q_norm, query), normed(own.k_norm, key)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        seen = attention.attend(number, query[:, :, None], key[:, :, None], value[:, :, None], own.scaling)
        hidden = hidden + linear(own.o_proj, seen.flatten(1))
        hidden = hidden + _mlp(layer.mlp, normed(layer.post_attention_layernorm, hidden))
    return normed(model.norm, hidden)


def linear(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """Return ``layer(rows)``. A CPU multiplies a tall matrix by few columns faster than few rows by a wide one."""
    if rows.is_cuda or not _is_plain(layer, nn.Linear) or layer.out_features < layer.in_features:
        return layer(rows)
    out = (layer.weight @ rows.T).T
    return out if layer.bias is None else out + layer.bias


def _mlp(module: Any, rows: torch.Tensor) -> torch.Tensor:
    if not hasattr(module, "gate_proj"):  # a router and experts
        return module(rows[:, None])[:, 0]
    return linear(module.down_proj, module.act_fn(linear(module.gate_proj, rows)) * linear(module.up_proj, rows))


def _turns(rotary: Any, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [N, 1, D]; of the sines the first half is negated.

    At text positions mRoPE is RoPE: all three of its positions are the same.
    """
    angles = positions[:, None, None].float() * rotary.inv_freq.float()  # [N, 1, D / 2]
    cos, sin = ((turn * rotary.attention_scaling).to(dtype) for turn in (angles.cos(), angles.sin()))
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return heads [N, heads, D] at their rotary positions."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether ``layer`` does what its class does with its own weight; an adapter or a hook must be called."""
    return type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks
