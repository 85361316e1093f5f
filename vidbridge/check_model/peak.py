"""How much memory something takes at most, and how long."""

from __future__ import annotations

import ctypes
import gc
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator, TypeVar

import torch

T = TypeVar("T")
CPU = torch.device("cpu")
_CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 forgets the peak

_MMAP_THRESHOLD = -3  # of glibc's mallopt: bytes from which a block has pages of its own


@contextmanager
def pages_of_their_own() -> Iterator[None]:
    """Give every tensor pages that go back to the system when it is freed: glibc would keep some, and count them."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16)
    yield
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**25)  # what it comes to by itself


def peak_extra_bytes(function: Callable[[], T], device: torch.device = CPU) -> tuple[float | None, T]:
    """The most memory a call takes beyond what was held before it, and what the call returns.

    On a GPU what its allocator handed out, on a CPU the pages in memory; None where no such number can be had.
    """
    before = held_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        return torch.cuda.max_memory_allocated(device) - before, result
    if not _CLEAR_REFS.exists():
        return None, function()
    _CLEAR_REFS.write_text("5")
    result = function()
    return _status_bytes("VmHWM") - before, result


def held_bytes(device: torch.device = CPU) -> float:
    """Return what is held now, by the same counts; 0 on a CPU that keeps none."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not _CLEAR_REFS.exists():
        return 0.0
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before shall not be there to be used again
    return _status_bytes("VmRSS")


def seconds_of(function: Callable[[], object]) -> float:
    """One call, with what it leaves running on a GPU."""
    started = _now()
    function()
    return _now() - started


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value) * 1024
