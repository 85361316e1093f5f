"""How hard a server is asked: so much a minute, and again after a pause that grows."""

from __future__ import annotations

import random

from vidbridge.errors import ConfigError
from vidbridge.runtime import collectives

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # between two attempts
_PASSING = (408, 409, 425, 429)  # beside 5xx: statuses that may be others the next time


class Pace:
    """At most ``per_minute`` units a minute on all ranks, evenly spread; None: as they come."""

    def __init__(self, per_minute: float | None) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ConfigError(f"judge: a limit per minute must be positive or null, got {per_minute}")
        self.per_minute = None if per_minute is None else per_minute / collectives.world_size()
        self._free_at = 0.0

    def reserve(self, units: float, now: float) -> float:
        """Seconds to wait before these units may go.

        >>> pace = Pace(60)
        >>> [pace.reserve(1, now=0.0), pace.reserve(3, now=0.0), pace.reserve(1, now=0.0), pace.reserve(1, now=9.0)]
        [0.0, 1.0, 4.0, 0.0]
        """
        if self.per_minute is None:
            return 0.0
        start = max(now, self._free_at)
        self._free_at = start + units * 60 / self.per_minute
        return start - now

    def correct(self, units: float) -> None:
        """So many more went than were reserved; fewer where it is negative."""
        if self.per_minute is not None:
            self._free_at += units * 60 / self.per_minute


def passes(status: int) -> bool:
    """Return whether the same request may do better a little later."""
    return status in _PASSING or status >= 500


def backoff_s(attempt: int) -> float:
    """Twice as long each time, up to a limit, and never all at once: half of it is chance."""
    return min(FIRST_WAIT_S * 2 ** min(attempt, 16), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
