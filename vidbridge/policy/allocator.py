"""Memory that a step frees stays with the process, for the next step asks for as much."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters in malloc.h
_LARGEST = 32 * 2**20  # threshold that glibc takes: larger tensors come from the kernel, and go back to it, as before


def keep_freed_memory() -> None:
    """For training on a CPU with glibc; elsewhere nothing happens.

    Otherwise activations go back to the kernel at the end of every step and come again as pages that it fills with
    zeros one by one: a tenth of the learner's time (experiments/bench/learner.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
