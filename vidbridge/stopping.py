"""SIGTERM and SIGINT end a run between two steps, not inside one."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from types import FrameType
from typing import Iterator


class Stopped(BaseException):
    """The run was asked to end; ``status`` is the exit status the shell expects, 128 + the signal's number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class StopSignals:
    """While in use as a context, SIGTERM and SIGINT raise Stopped: at once, or at the end of what is ``deferred``."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._handle) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs here is not interrupted."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._asked is not None:
            raise Stopped(self._asked)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._asked = signum
        if not self._deferring:
            raise Stopped(signum)
