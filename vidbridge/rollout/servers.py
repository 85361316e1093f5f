"""The servers of a rollout: which of them have which weights, and how the weights get there."""

from __future__ import annotations

import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import torch

from vidbridge.config.checks import require
from vidbridge.errors import RolloutLost
from vidbridge.policy.policy import Policy
from vidbridge.rollout.server_client import QUICK_S, Late, Server, ServerFault
from vidbridge.rollout.wire import BEGIN, END, PART, STATE, pack
from vidbridge.runtime import collectives
from vidbridge.runtime.progress import clock, waiting

log = logging.getLogger(__name__)

PART_BYTES = 256_000_000  # of weights in one message
BEGIN_S = 60.0  # to break off what it does, and be ready for weights
AGAIN_S = 2.0  # between two looks at servers that are all away


class Servers:
    """``live`` are those that have the weights of ``version``, as far as this rank knows; the others are away.

    ``wanted`` is what a server must say of itself; of max_tokens it may have more. Weights are sent by the first rank.
    """

    def __init__(
        self, servers: Sequence[Server], wanted: Mapping[str, Any], *, timeout_s: float, patience_s: float
    ) -> None:
        self.all, self._wanted = list(servers), wanted
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self.version, self.live = "", list[Server]()
        self._run = collectives.all_gather(uuid.uuid4().hex[:12])[0]
        self._num_pushes = 0
        self._stuck: dict[Server, str] = {}  # did not answer in time, and which start of theirs that was
        self._away: dict[Server, str] = {}  # and why

    def push(self, policy: Policy) -> None:
        """Give the weights as they are now to all servers that can be reached; called by all ranks.

        Waits until there is one, and is RolloutLost on all ranks after ``patience_s``.
        """
        if self._pushed(policy):
            return
        since = time.monotonic()
        with waiting(log.warning if collectives.is_rank_0() else lambda line: None, self._why):
            while not self._pushed(policy):
                waited = collectives.on_rank_0(lambda: time.monotonic() - since)
                if waited > self.patience_s:
                    raise RolloutLost(
                        f"no rollout server for {clock(waited)} ({self.told_away()}): start them (python -m "
                        "vidbridge.rollout.serve), or change rollout.addresses; then go on with resume=auto"
                    )
                time.sleep(min(AGAIN_S, self.patience_s))

    def set_aside(self, server: Server, fault: ServerFault) -> None:
        """Leave a server out until the next push."""
        if server not in self._away:
            log.warning("rollout server %s: %s; it is left out for now", server.address, fault)
        self._away[server] = str(fault)

    def told_away(self) -> str:
        """Return which servers are away and why, as far as any rank knows; called by all."""
        everyones = {server: why for away in collectives.all_gather(self._away) for server, why in away.items()}
        return _told(everyones)

    def _why(self) -> str:
        return _told(dict(self._away))

    def _pushed(self, policy: Policy) -> bool:
        """Push to those that are there now; return whether there is one."""
        self._num_pushes += 1
        version = f"{self._run}-{self._num_pushes}"
        live = collectives.on_rank_0(lambda: self._each(self.all, lambda server: self._begin(server, version)))
        if not live:
            return False
        number = 0
        for number, part in enumerate(_parts(policy.weights()), start=1):  # on other ranks there are none
            message = pack({"version": version, "part": number - 1}, part)
            live = self._each(live, lambda server: server.post(PART, message, self.timeout_s))
        end = pack({"version": version, "parts": number})
        live = collectives.on_rank_0(
            lambda: self._each(live, lambda server: server.post(END, end, self.timeout_s))
        )
        if live:
            self.version, self.live = version, live
            for server in set(self._away) & set(live):
                log.warning("rollout server %s is back", server.address)
                del self._away[server]
        return bool(live)

    def _begin(self, server: Server, version: str) -> None:
        """Have a server be ready for weights. ConfigError for one of another model."""
        state = server.get(STATE, QUICK_S)
        if self._stuck.get(server) == state.get("boot"):
            raise ServerFault("it did not answer in time, and was not started again since")
        for name, value in self._wanted.items():
            there = state.get(name)
            fits = isinstance(there, int) and there >= value if name == "max_tokens" else there == value
            told = f"{server.address} has {name}={there}, this run needs {value}: see serve --help"
            require(fits, f"rollout.addresses: {told}")
        try:
            server.post(BEGIN, pack({"version": version}), BEGIN_S)
        except Late:
            self._stuck[server] = str(state.get("boot"))
            raise

    def _each(self, servers: Iterable[Server], call: Callable[[Server], Any]) -> list[Server]:
        """Call for each server side by side; return those where it went well. Other errors than theirs are raised."""

        def fault_of(server: Server) -> ServerFault | None:
            try:
                call(server)
            except ServerFault as fault:
                return fault
            return None

        servers = list(servers)
        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            faults = dict(zip(servers, pool.map(fault_of, servers)))
        for server, fault in faults.items():
            if fault is not None:
                self.set_aside(server, fault)
        return [server for server, fault in faults.items() if fault is None]


def _told(away: Mapping[Server, str]) -> str:
    return "; ".join(f"{server.address}: {why}" for server, why in away.items())


def _parts(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the weights, copied to the CPU by the first rank, in messages of about PART_BYTES."""
    part: dict[str, torch.Tensor] = {}
    for name, weight in weights:
        if collectives.is_rank_0():
            part[name] = weight.detach().to("cpu", copy=True)
            if sum(each.nbytes for each in part.values()) >= PART_BYTES:
                yield part
                part = {}
    if part:
        yield part
