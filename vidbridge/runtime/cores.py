"""Which cores this process may use, and how many of them others keep busy.

Threads that compute together wait for each other by spinning (libgomp, which torch is built with). Where there are more
of them than free cores, one that has no core keeps all others spinning on theirs, and two jobs side by side are many
times slower than one after the other. Fewer threads than cores cost far less.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_BUSY_FRAC = 0.5  # of a core, that others must use before it counts as taken: a shell or a browser does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Processor time up to a moment, in seconds: of all cores that this process may use, and of itself and children."""

    at_s: float
    all_s: float | None  # None where the system does not tell
    own_s: float

    @classmethod
    def now(cls) -> Usage:
        own = os.times()
        spent = own.user + own.system + own.children_user + own.children_system
        return cls(at_s=time.monotonic(), all_s=_busy_s(allowed()), own_s=spent)


def allowed() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable() -> int:
    """Return how many threads can compute at once: the cores allowed, or the worth of a container's quota, if less."""
    quotas = [math.ceil(quota) for quota in _quotas() if quota > 0]
    return min([len(allowed()), *quotas])


def others_busy(since: Usage) -> float:
    """Return how many of the allowed cores others have kept busy since then, on average; 0 where nobody knows."""
    now = Usage.now()
    seconds = now.at_s - since.at_s
    if now.all_s is None or since.all_s is None or seconds <= 0:
        return 0.0
    others_s = (now.all_s - since.all_s) - (now.own_s - since.own_s)
    return min(max(others_s / seconds, 0.0), float(len(allowed())))


def advice(threads: int, ranks: int, busy: float) -> str:
    """Return why so many threads for each of so many ranks are too many here, and what to set; "" if they are not.

    ``busy``: cores that others keep busy.
    """
    cores, wanted = usable(), threads * ranks
    free = max(1, cores - math.floor(busy + _BUSY_FRAC))
    if wanted <= free:
        return ""
    here = f"{len(allowed())} cores" if cores == len(allowed()) else f"a quota of {cores} of {len(allowed())} cores"
    load = f", {busy:.1f} of them busy with other processes" if free < cores else ""
    each = f"{threads} threads" if ranks == 1 else f"{threads} threads on each of {ranks} ranks"
    return (
        f"{here}{load}, and torch computes with {each}: threads without a core make all others wait. "
        f"Set OMP_NUM_THREADS={max(1, free // ranks)} (threads x jobs should be no more than the cores)"
    )


def _busy_s(cores: set[int]) -> float | None:
    """Seconds that these cores have computed since the system started; None where it does not tell."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
    except OSError:
        return None
    ticks: list[int] = []
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, numbers[:7])  # user holds a guest's time
            ticks.append(user + nice + system + irq + softirq)
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _quotas() -> Iterator[float]:
    """The cores' worth of time that each control group around this process is given, of those that have a limit."""
    try:
        path = next(line for line in (_PROC / "self" / "cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):  # no Linux, or control groups of version 1
        return
    yield from (_quota(folder / "cpu.max") for folder in _upwards(_CGROUPS, path.removeprefix("0::")))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it; a container sees its own group as the root, whatever its path says."""
    folder = root / path.lstrip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _quota(file: Path) -> float:
    """Return what "400000 100000" is worth, 4.0 cores; 0 for "max 100000" and without a file: there is no limit."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
