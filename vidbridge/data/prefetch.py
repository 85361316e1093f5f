"""Prepare the next step's data while this one trains."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetch(Generic[T]):
    """``load(step)`` computed one step ahead in a thread; asking out of order still gives the right answer.

    An error raised while loading is raised by the call that asks for that step. Nothing is loaded ahead of step
    ``last``, for whatever comes after the last step needs the processor itself.
    """

    def __init__(self, load: Callable[[int], T], *, last: int | None = None) -> None:
        self._load, self._last = load, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=one_torch_thread)
        self._ahead: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        ahead, self._ahead = self._ahead, None
        current = ahead[1] if ahead and ahead[0] == step else self._pool.submit(self._load, step)
        value = current.result()
        if self._last is None or step < self._last:
            self._ahead = (step + 1, self._pool.submit(self._load, step + 1))
        return value


def one_torch_thread() -> None:
    """A second team of OpenMP threads would fight with the learner's for the same cores, and both wait by spinning."""
    torch.set_num_threads(1)
