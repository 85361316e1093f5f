"""A CUDA device without one: tensors that say they are on cuda:0, and whose numbers lie in the memory of the CPU.

What is proved with it is all that a device asks of a program and arithmetic does not: that tensors which meet are on
one device, that nothing is read on the host or brought from there while a graph is captured, and that a graph which is
replayed finds its inputs where they were. Kernels, their speed and their rounding are not: tests/gpu/ is for those.

``flex_attention`` is replaced by the dense rule that its mask spells, and ``torch.compile`` is not asked.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vidbridge.policy import attention

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
MAY_MEET_THE_CPU = {aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# the host waits for their result, be it for its size alone
HOST_WAITS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
}
HOST_READS = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy}
BROUGHT_FROM_THE_HOST = {torch.tensor, torch.as_tensor, torch.from_numpy}


class OnDevice(torch.Tensor):
    """``inner`` has the numbers; torch itself believes in a tensor on the CPU, and differentiates it as one."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        assert not isinstance(inner, OnDevice)
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner.detach()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in MAY_MEET_THE_CPU and any(
            isinstance(each, torch.Tensor) and not isinstance(each, OnDevice) and each.ndim > 0
            for each in tree_leaves((args, kwargs))
        ):
            raise RuntimeError(f"{func}: expected all tensors to be on one device, found cuda:0 and cpu")
        if Graph.capturing is not None:
            return Graph.capturing.record(func, args, kwargs)
        return outer(func, args, kernel_of(func)(*inner(args), **inner(kwargs)))

    def __repr__(self, **unused) -> str:
        return f"on cuda:0: {self.inner}"

    def __format__(self, form: str) -> str:
        return format(fetch(self), form)

    def __deepcopy__(self, memo):
        copy = OnDevice(self.inner.clone())
        return memo.setdefault(id(self), copy.requires_grad_(self.requires_grad))


def inner(tree):
    return tree_map_only(OnDevice, lambda tensor: tensor.inner, tree)


def outer(func, args, out):
    """What the numbers ``out`` are on the device; what was changed in place is what it was."""
    if is_mutable(func):
        return args[0] if isinstance(args[0], OnDevice) else None
    return tree_map_only(torch.Tensor, OnDevice, out)


@cache
def is_mutable(func) -> bool:
    return func._schema.is_mutable


def kernel_of(func):
    """There is none on a CPU for products of 16 bits with results of 32."""
    if func is aten.bmm.dtype:
        return lambda one, other, dtype: one.to(dtype) @ other.to(dtype)
    return func


def put(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, OnDevice) else OnDevice(tensor).requires_grad_(tensor.requires_grad)


def fetch(tensor: torch.Tensor) -> torch.Tensor:
    assert Graph.capturing is None, "the host may not wait for a stream that is captured"
    return tensor.inner.clone() if isinstance(tensor, OnDevice) else tensor


class Graph:
    """In the place of torch.cuda.CUDAGraph: it remembers calls and their tensors, and makes the same calls again.

    As on a device, nothing is computed while it is captured: its outputs hold nan until the first replay, and what it
    changes in place is as it was.
    """

    capturing: Graph | None = None
    captured = 0  # of all graphs

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.undo: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replays = 0

    def record(self, func, args, kwargs):
        assert func not in HOST_WAITS, f"{func}: the host may not wait for a stream that is captured"
        strangers = [each for each in tree_leaves(args) if isinstance(each, torch.Tensor) and each.ndim > 0]
        assert all(isinstance(each, OnDevice) for each in strangers), f"{func}: brings a tensor from the host"
        chosen = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
        bools = [each for each in strangers[1:] if each.dtype == torch.bool]
        assert not (chosen and bools), f"{func} by a mask: the host may not wait for a stream that is captured"
        arguments, options = inner(args), inner(kwargs)
        if is_mutable(func):
            self.undo.append((arguments[0], arguments[0].clone()))
        out = kernel_of(func)(*arguments, **options)
        self.calls.append((func, arguments, options, out))
        return outer(func, args, out)

    def end(self) -> None:
        for func, *_, out in self.calls:
            if not (is_mutable(func) or func.is_view):
                for tensor in tree_leaves(out):
                    if tensor.is_floating_point():
                        tensor.fill_(torch.nan)
        for tensor, before in reversed(self.undo):
            tensor.copy_(before)
        self.undo.clear()
        Graph.captured += 1

    def replay(self) -> None:
        self.replays += 1
        for func, arguments, options, out in self.calls:
            again = kernel_of(func)(*arguments, **options)
            if not (is_mutable(func) or func.is_view):
                for tensor, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    tensor.copy_(new)


@contextmanager
def capture(graph: Graph, **options):
    assert Graph.capturing is None
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None
    graph.end()


class Calls(TorchFunctionMode):
    """Calls that name a device, or leave it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.backward:
            (loss,) = args
            with self:  # what is called on the way back is looked at too
                return Variable._execution_engine.run_backward(
                    (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        if func in HOST_READS and isinstance(args[0], OnDevice):
            assert func is not torch.Tensor.numpy, "can't convert cuda:0 tensor to numpy"
            found = fetch(args[0].detach())
            return found if func is torch.Tensor.cpu else found.tolist()
        if func is torch.Tensor.cuda:
            return put(args[0])
        if func is torch.Tensor.to:
            return self.moved(*args, **kwargs)
        if func in (torch.Tensor.new_tensor, torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_full):
            kwargs.setdefault("device", args[0].device)
            args = (torch.empty(0, dtype=args[0].dtype), *args[1:])
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "cuda":
            return func(*args, **kwargs)
        assert not (Graph.capturing and func in BROUGHT_FROM_THE_HOST), f"{func.__name__} while capturing"
        return put(func(*inner(args), **inner({**kwargs, "device": "cpu"})))

    @staticmethod
    def moved(tensor: torch.Tensor, *args, **kwargs):
        targets = [*args, *kwargs.values()]
        places = [each.device for each in targets if isinstance(each, torch.Tensor)]
        places += [torch.device(each) for each in targets if isinstance(each, (str, torch.device))]
        dtypes = [each for each in targets if isinstance(each, torch.dtype)]
        dtypes += [each.dtype for each in targets if isinstance(each, torch.Tensor)]
        for place in places:
            comes = place.type == "cuda" and not isinstance(tensor, OnDevice)
            assert not (comes and Graph.capturing), "sent to a stream that is captured"
            tensor = put(tensor) if place.type == "cuda" else fetch(tensor)
        for dtype in dtypes:
            tensor = tensor.to(dtype)
        return tensor


cpus_own_to = nn.Module.to


def moved_module(module: nn.Module, *args, **kwargs) -> nn.Module:
    """In the place of nn.Module.to: every weight and buffer once, so that what is tied stays tied."""
    device = torch.device(args[0] if args and not isinstance(args[0], torch.dtype) else kwargs["device"])
    if device.type != "cuda":
        return cpus_own_to(module, *args, **kwargs)
    found: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, weight in each._parameters.items():
            if weight is not None and not isinstance(weight, OnDevice):
                there = nn.Parameter(OnDevice(weight.detach()), requires_grad=weight.requires_grad)
                each._parameters[name] = found.setdefault(id(weight), there)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = put(buffer)
    return module


def dense_flex(query, key, value, *, block_mask, scale, enable_gqa):
    """The rule of flex_attention in ordinary operations; ``block_mask`` is as ``pretend_block_mask`` makes it."""
    assert enable_gqa
    places = torch.arange(query.shape[2], device=query.device)
    sees = block_mask.mask_mod(None, None, places[:, None], places)
    siblings = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(siblings, dim=1), value.repeat_interleave(siblings, dim=1)
    scores = (query.float() @ key.float().mT * scale).masked_fill(~sees, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def pretend_block_mask(sees, batch, heads, query_length, key_length, device):
    assert query_length == key_length and device.type == "cuda"
    return SimpleNamespace(mask_mod=sees)


@pytest.fixture
def pretend_cuda(monkeypatch):
    """While it lasts there is one device; returns Graph, which counts the captures."""
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    @contextmanager
    def nothing(*unused, **options):
        yield

    doubles = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "pretended",
        "synchronize": lambda device=None: None,
        "is_initialized": lambda: True,
        "Stream": lambda device=None: stream,
        "current_stream": lambda device=None: stream,
        "stream": nothing,
        "device": nothing,
        "graph": capture,
        "CUDAGraph": Graph,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    monkeypatch.setattr(nn.Module, "to", moved_module)
    monkeypatch.setattr(attention, "_compiled_flex_attention", dense_flex)
    monkeypatch.setattr(attention, "_compiled_block_mask", pretend_block_mask)
    monkeypatch.setattr(Graph, "captured", 0)
    with Calls():
        yield Graph
