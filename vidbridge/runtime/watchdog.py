"""A process that hangs says where, and ends: waiting costs as much as working, and nobody may be looking."""

from __future__ import annotations

import faulthandler
import time
from types import TracebackType
from typing import Self

STDERR = 2  # the file descriptor: the process's own, whatever sys.stderr is at the moment


class Watchdog:
    """While in use as a context: after ``limit_s`` without a sign of life the stacks of all threads, and the end.

    The clock is a thread of the interpreter's that needs no lock, so that a hang in C code is found too.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._told_at = -limit_s

    def alive(self) -> None:
        now = time.monotonic()
        if now - self._told_at < self.limit_s / 1000:  # starting the clock again costs a thread
            return
        self._told_at = now
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=STDERR)

    def __enter__(self) -> Self:
        self._told_at = -self.limit_s
        self.alive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
