"""Recurrent layers of Qwen3.5 (gated delta rule, arXiv 2412.06464) whose state can be forked.

The layers of transformers begin at nothing or go on from a cache of their own. Here the same arithmetic takes the state
of each row and returns the next one, so that all completions of a prompt can begin where it ends. Rules and weights are
the library's; where its kernels for GPUs are installed, it takes those.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3_5 import modeling_qwen3_5 as library

from vidbridge.backbones.attention_interface import Attends, State


class GatedDelta:
    """One layer's convolution and delta rule: the Cell of attention_interface.py.

    Its inputs are the projections [N, T, C], the decay in logarithms and the writing strength beta, both [N, T, heads].
    Its state is the last K - 1 inputs of the convolution [N, K - 1, C] and the memory [N, heads, Dk, Dv].
    """

    def __init__(self, module: Any):
        self.module = module
        self.reach = module.conv_kernel_size - 1

    def __call__(
        self, inputs: Sequence[torch.Tensor], lengths: Sequence[int] | None, state: State | None
    ) -> tuple[torch.Tensor, State]:
        """Return what is read from the memory [N, T, heads, Dv], and the state after ``lengths`` tokens."""
        own, (projected, decay, beta) = self.module, inputs
        num_rows, num_tokens, _ = projected.shape
        before, memory = (projected.new_zeros(num_rows, self.reach, own.conv_dim), None) if state is None else state
        extended = torch.cat([before, projected], dim=1)  # [N, K - 1 + T, C]
        # the convolution pads both its sides with K - 1 zeros, and it is called so that ZeRO-3 gathers its weight
        seen = own.conv1d(extended.transpose(1, 2))[:, :, self.reach : self.reach + num_tokens].transpose(1, 2)
        query, key, value = F.silu(seen).split([own.key_dim, own.key_dim, own.value_dim], dim=-1)
        if lengths is None:
            tail = extended[:, num_tokens:]
        else:
            tail = torch.stack([row[length : length + self.reach] for row, length in zip(extended, lengths)])
            if min(lengths) < num_tokens:  # nothing decays and nothing is written after the end of a row
                ends = torch.tensor(lengths, device=decay.device)
                is_token = (torch.arange(num_tokens, device=decay.device) < ends[:, None])[:, :, None]
                decay, beta = decay * is_token, beta * is_token
        is_step = num_tokens == 1 and memory is not None
        rule = library.torch_recurrent_gated_delta_rule if is_step else library.torch_chunk_gated_delta_rule
        read, memory = rule(
            query.unflatten(-1, (-1, own.head_k_dim)),
            key.unflatten(-1, (-1, own.head_k_dim)),
            value.unflatten(-1, (-1, own.head_v_dim)),
            g=decay,
            beta=beta,
            initial_state=memory,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return read, (tail, memory)


def take_states(module: nn.Module) -> None:
    """Let a recurrent layer ask the object in ``shared_prefix`` for its states. Weights, names and class stay."""
    module.forward = MethodType(_forward, module)


def _forward(
    self: Any, hidden_states: torch.Tensor, *args: Any, shared_prefix: Attends | None = None, **options: Any
) -> torch.Tensor:
    if shared_prefix is None:  # somebody else's call (generate)
        return type(self).forward(self, hidden_states, *args, **options)
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    rate = F.softplus(self.in_proj_a(hidden_states).to(wide) + self.dt_bias)
    inputs = (
        self.in_proj_qkv(hidden_states),
        -self.A_log.to(wide).exp() * rate,
        self.in_proj_b(hidden_states).sigmoid(),
    )
    read = shared_prefix.recur(self.layer_idx, GatedDelta(self), inputs)  # [B, S, heads, Dv]
    gate = self.in_proj_z(hidden_states)
    out = self.norm(read.flatten(0, 2), gate.reshape(-1, self.head_v_dim))
    return self.out_proj(out.reshape(gate.shape))
