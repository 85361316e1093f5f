"""How far a long job has come: a bar on a terminal; elsewhere, in a log say, a plain line now and then."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import Callable, Iterable, Iterator, Sized, TypeVar

from rich.console import Console
from rich.progress import Progress

EVERY_S = 30.0  # between two plain lines

T = TypeVar("T")


class Lines:
    """Says how much is done, how fast it goes and what is left: when something happens, and at most every ``EVERY_S``.

    Nobody speaks for a job that hangs: without a call there is no line.
    """

    def __init__(self, say: Callable[[str], None], name: str, total: int, done: int = 0) -> None:
        self._say, self._name, self._total, self._done, self._first = say, name, total, done, done
        self._started = self._last = time.monotonic()
        say(f"{name} ..")

    def advance(self, more: int) -> None:
        """So many more are done; 0: none, but the work goes on."""
        self._done += more
        now = time.monotonic()
        is_last_of_several = more > 0 and self._done == self._total and self._last > self._started
        if now - self._last >= EVERY_S or is_last_of_several:
            self._last = now
            self._say(f"{self._name}: {told(self._done - self._first, self._done, self._total, now - self._started)}")


def told(fresh: int, done: int, total: int, seconds: float) -> str:
    """Return a line on a job that has made ``fresh`` of ``done`` things in so many seconds.

    >>> told(20, 120, 200, 40.0), told(1, 1, 9, 90.0), told(0, 0, 9, 31.0)
    ('120 of 200, 0.5 a second, 2:40 left', '1 of 9, 0.67 a minute, 12:00 left', '0 of 9 after 0:31')
    """
    if fresh <= 0:
        return f"{done} of {total} after {clock(seconds)}"
    rate = fresh / seconds
    pace = f"{rate:.3g} a second" if rate >= 0.5 else f"{60 * rate:.2g} a minute"
    return f"{done} of {total}, {pace}, {clock((total - done) / rate)} left"


def clock(seconds: float) -> str:
    """
    >>> clock(125.4), clock(7384)
    ('2:05', '2:03:04')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Call what this gives with how many more things are done."""
    console = Console()
    if not console.is_terminal:
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        yield Lines(say, name, total).advance
        return
    with Progress(console=console) as bar:
        task = bar.add_task(name, total=total)
        yield lambda more: bar.advance(task, more)


def track(things: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
    """The things, one by one; ``total`` where they have no length."""
    number = len(things) if isinstance(things, Sized) else total
    assert number is not None
    with progress(name, number) as advance:
        for thing in things:
            yield thing
            advance(1)


@contextmanager
def waiting(say: Callable[[str], None], why: Callable[[], str]) -> Iterator[None]:
    """Every ``EVERY_S`` says for how long something has been waited for, and ``why()`` as far as that is known."""
    over, started = threading.Event(), time.monotonic()

    def speak() -> None:
        while not over.wait(EVERY_S):
            reason = why()
            say(f"still waiting after {clock(time.monotonic() - started)}{f': {reason}' if reason else ''}")

    thread = threading.Thread(target=speak, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
