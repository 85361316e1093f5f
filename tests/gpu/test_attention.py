"""PackedFlex as it is compiled for the device, against the dense mask."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.policy.dense import dense_attention, packed_ids, sees
from vidbridge.policy.attention import PackedFlex, packed_attention

LENGTHS = {
    "one group, many blocks": [[300, 90, 41, 1, 128]],
    "unequal groups": [[130, 7, 60], [64], [200, 33, 2, 2], [5, 300]],
    "one block": [[20, 5, 9]],
}
SHAPES = {"3B": (16, 2, 128), "7B": (28, 4, 128), "heads too small for the kernel": (4, 2, 8)}  # H, K, D
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the size of the whole


def tensors(shape, size, dtype):
    heads, key_heads, head_size = shape
    generator = torch.Generator("cuda").manual_seed(0)
    make = lambda number: torch.randn(  # noqa: E731
        1, number, size, head_size, device="cuda", dtype=dtype, generator=generator, requires_grad=True
    )
    return make(heads), make(key_heads), make(key_heads)


def error(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_equal_the_dense_mask(shape, dtype, record_property):
    for case, lengths in LENGTHS.items():
        ids = packed_ids(lengths, "cuda")
        attention = packed_attention(*ids)
        assert isinstance(attention, PackedFlex)
        inputs = tensors(SHAPES[shape], len(ids[0]), dtype)
        got = attention.attend(0, *inputs, 0.3)
        want = dense_attention(*inputs, sees(*ids), 0.3)
        pull = torch.randn_like(want)
        errors = [error(got, want)]
        found = torch.autograd.grad((got.float() * pull).sum(), inputs)
        expected = torch.autograd.grad((want * pull).sum(), inputs)
        errors += [error(one, other.float()) for one, other in zip(found, expected)]
        record_property(case, [f"{each:.1e}" for each in errors])
        assert got.dtype == dtype and max(errors) < TOLERANCE[dtype], case


def test_two_compilations_are_enough_for_all_lengths(record_property):
    """One for the first length, one for every other; of the mask and of the kernel, forward and backward together."""
    torch._dynamo.reset()
    counters.clear()
    for longest in (150, 250, 333, 600, 1000, 777, 150):
        ids = packed_ids([[longest, 20, 31, 1], [40, 5]], "cuda")
        inputs = tensors(SHAPES["3B"], len(ids[0]), torch.bfloat16)
        packed_attention(*ids).attend(0, *inputs, 0.3).float().sum().backward()
    record_property("compilations", counters["stats"]["unique_graphs"])
    assert counters["stats"]["unique_graphs"] <= 2 * 2
