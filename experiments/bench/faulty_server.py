"""A judge server whose latency and faults are scripted: vidbridge.shapes_world.serve, with all that goes wrong.

    python -m experiments.bench.faulty_server --latency 0.1 --fault-frac 0.3 --seed 0

In a test or a benchmark ``running(Script(..))`` is a context in a thread, ``spawned(..)`` one in a process of its own.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Iterator, Sequence

from vidbridge.runtime.json_http import ThreadedServer
from vidbridge.shapes_world import serve

FAULTS = (
    "status_429", "status_500", "status_503", "drop", "cut", "html", "nested", "no_choices", "prose", "fences",
    "wrong_key", "out_of_range", "half_a_character", "empty", "null",
)  # fmt: skip
_BODIES = {"cut": b'{"choices": [{"mess', "html": b"<html>Bad gateway</html>", "nested": b"[" * 100_000}
_TEXTS = {
    "prose": "Score 0, not a Score 2",
    "fences": '```json\n{"score": 2}\n```\n```json\n{"score": 0}\n```',
    "wrong_key": '{"grade": 2, "verdict": "true"}',
    "out_of_range": '{"score": 7}',
    "half_a_character": '{"score": "\ud800"}',
    "empty": "",
    "null": None,
}


@dataclass
class Script:
    """What happens to the n-th call, counted from 0: the name of a fault, or None for the right reply."""

    fault: Callable[[int], str | None] = lambda number: None
    latency_s: float = 0.0
    retry_after: str | None = None  # header of 429 and 503
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # when each call came
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, headers: dict[str, str]) -> str | None:
        with self._lock:
            number = len(self.times)
            self.times.append(time.monotonic())
            self.headers_seen.append(headers)
        return self.fault(number)


def at_random(fault_frac: float, seed: int = 0) -> Callable[[int], str | None]:
    """Each call fails with this probability, in any of the ways."""
    rng = random.Random(seed)
    return lambda number: rng.choice(FAULTS) if rng.random() < fault_frac else None


class Handler(serve.Handler):
    server: FaultyServer

    def do_POST(self) -> None:
        script = self.server.script
        fault = script.next({name.lower(): value for name, value in self.headers.items()})
        if script.latency_s:
            time.sleep(script.latency_s)
        if fault is None:
            super().do_POST()
            return
        self.body()
        self.fail(fault, script.retry_after)

    def fail(self, fault: str, retry_after: str | None) -> None:
        if fault.startswith("status_"):
            headers = {"Retry-After": retry_after} if retry_after is not None else {}
            key = self.headers.get("Authorization", "")
            self.respond(int(fault.removeprefix("status_")), {"error": {"message": f"not now, {key}"}}, headers)
        elif fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "hang":
            time.sleep(3600)
        elif fault in _BODIES:
            body = _BODIES[fault]
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if fault == "html" else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif fault == "no_choices":
            self.respond(200, {"choices": []})
        else:
            body = serve.completion("", "faulty")
            body["choices"][0]["message"]["content"] = _TEXTS[fault]
            self.respond(200, body)


class FaultyServer(ThreadedServer):
    def __init__(self, script: Script, port: int = 0) -> None:
        super().__init__((serve.HOST, port), Handler)
        self.script = script

    @property
    def url(self) -> str:
        return f"http://{serve.HOST}:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the play."""


@contextmanager
def running(script: Script, port: int = 0) -> Iterator[FaultyServer]:
    with FaultyServer(script, port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def spawned(*options: str) -> Iterator[str]:
    """The address of a server in a process of its own, so that its work is not the client's."""
    command = [sys.executable, "-m", "experiments.bench.faulty_server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="the exact judge with scripted latency and faults")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--fault-frac", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    script = Script(fault=at_random(args.fault_frac, args.seed), latency_s=args.latency)
    with FaultyServer(script, args.port) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
