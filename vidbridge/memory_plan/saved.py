"""Bytes that one layer keeps for its backward pass: counted on tensors that have a shape and no memory.

So no formula has to follow what each family's layers do. Attention is counted as a fused kernel: it keeps query, key,
value and its output. Experts are counted as if each token's were computed one by one, recurrent layers as the library's
rules in torch have them, which keep more than kernels do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from vidbridge.backbones.attention_interface import Cell
from vidbridge.backbones.base import Backbone

COUNTED = "flash_counted"  # the tower's attention ("flash": it is given all windows at once), and a way to do experts
NUMBER = 64  # tokens, and patches, that are counted: the chunk that a recurrent layer works on at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """The decoder layers of one kind; bytes."""

    number: int
    saved: float  # a token, kept for the backward pass
    chunk: float  # of NUMBER tokens of one sequence, full or not, that a recurrence keeps beside that; 0: it attends
    state: float  # of one sequence


def text_layers(backbone: Backbone, module: PreTrainedModel) -> tuple[LayerKind, ...]:
    """Return the kinds of decoder layers of ``module``, which lies on the meta device."""
    model = backbone.text_model(module)
    model.config._experts_implementation = COUNTED
    kinds = getattr(model.config, "layer_types", None) or [""] * len(model.layers)
    return tuple(_text_layer(model, kinds.index(kind), kinds.count(kind)) for kind in dict.fromkeys(kinds))


def _text_layer(model: Any, index: int, number: int) -> LayerKind:
    layer = model.layers[index]
    counted = _CountedAttention(layer)
    with torch.device("meta"):
        hidden = torch.zeros(1, NUMBER, model.config.hidden_size, dtype=model.dtype, requires_grad=True)
        turns = model.rotary_emb(hidden, torch.zeros(3, 1, NUMBER, dtype=torch.long))

        def run() -> torch.Tensor:
            return layer(hidden * 1, position_embeddings=turns, attention_mask=None, shared_prefix=counted)

        saved = _saved_bytes(run, layer, *turns) / NUMBER
    return LayerKind(number=number, saved=saved + counted.token, chunk=counted.chunk, state=counted.state)


def vision_block(backbone: Backbone, module: PreTrainedModel) -> float:
    """Return the bytes a patch that a block of the vision tower of ``module``, on the meta device, keeps."""
    tower = backbone.vision_tower(module)
    tower.config._attn_implementation = COUNTED
    windows = torch.tensor([0, NUMBER], dtype=torch.int32)  # one, of all patches
    with torch.device("meta"):
        hidden = torch.zeros(NUMBER, tower.config.hidden_size, dtype=module.dtype, requires_grad=True)
        turns = (torch.zeros(NUMBER, tower.config.hidden_size // tower.config.num_heads),) * 2

        def run() -> torch.Tensor:
            return tower.blocks[0](hidden * 1, cu_seqlens=windows, position_embeddings=turns, max_seqlen=NUMBER)

        return _saved_bytes(run, tower.blocks[0], *turns) / NUMBER


def _saved_bytes(run: Callable[[], object], layer: nn.Module, *others: torch.Tensor) -> float:
    """Return the bytes that ``run`` saves, but for the weights of the layer and what ``others`` hold."""
    known = {tensor.untyped_storage()._cdata for tensor in (*layer.parameters(), *others)}
    saved: dict[int, torch.Tensor] = {}  # by storage: views of one count once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in known:
            saved.setdefault(storage, tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return float(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(out)


class _CountedAttention:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.token = self.chunk = self.state = 0.0  # bytes that a recurrence keeps, and those of its state

    def recur(self, layer: int, cell: Cell, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            out, state = cell(inputs, None, None)
        begun = tuple(each.requires_grad_() for each in state)
        self.state = float(sum(each.nbytes for each in begun))

        def of(number: int) -> float:
            alone = [each[:, :number].detach().requires_grad_() for each in inputs]
            return _saved_bytes(lambda: cell(alone, None, begun), self.layer)

        few = 2  # one token alone would be a decoding step
        self.token = (of(NUMBER) - of(few)) / (NUMBER - few)
        self.chunk = of(few) - few * self.token
        return _Recurrence.apply(out, *inputs)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return _Kernel.apply(query, key, value).transpose(1, 2)


def _counted_windows(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    return _Kernel.apply(query, key, value).transpose(1, 2), None


def _counted_experts(
    module: Any, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return a mixture of experts [tokens, hidden], all of them the first: which they are changes no size."""
    rows = hidden.repeat_interleave(experts.shape[1], dim=0)
    gate, up = F.linear(rows, module.gate_up_proj[0]).chunk(2, dim=-1)
    out = F.linear(module.act_fn(gate) * up, module.down_proj[0]) * weights.reshape(-1, 1)
    return out.unflatten(0, (-1, experts.shape[1])).sum(dim=1)


AttentionInterface.register(COUNTED, _counted_windows)
ALL_EXPERTS_FUNCTIONS.register(COUNTED, _counted_experts)
