"""SIGTERM and SIGINT end a run between two steps, not inside one, and all its ranks at the same step."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Iterator

from vidbridge.errors import Stopped
from vidbridge.runtime import collectives


class StopSignals:
    """While ``installed``, the first SIGTERM or SIGINT raises Stopped; further ones change nothing.

    At once, or while ``deferred`` at the next ``check``, where the ranks agree: the signal may have reached only one.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        with handled(self._handle):
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold signals back: what runs in here is interrupted by nothing but ``check``."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._asked:
            raise Stopped(self._asked, agreed=collectives.world_size() == 1)

    def check(self) -> None:
        """Called by all ranks at the same place: Stopped on all if one was asked to stop."""
        if asked := max(collectives.all_gather(self._asked)):
            self._asked = asked
            raise Stopped(asked, agreed=True)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, self._asked or signum
        if not again and not self._deferring:
            raise Stopped(signum, agreed=collectives.world_size() == 1)


@contextmanager
def passed_on(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Meanwhile SIGTERM and SIGINT are for ``process``; Stopped afterwards, if there was one."""
    asked: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        process.send_signal(signum)

    with handled(handle):
        yield
    if asked:
        raise Stopped(asked[0], agreed=False)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, old)
