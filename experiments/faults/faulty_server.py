"""A rollout server, with our own engine, in which something goes wrong at a request that can be chosen.

    python -m experiments.faults.faulty_server --port 8200 --fault nan --at 12

exit: the process ends in its 12th request for completions. hang: it never answers it. fewer, nan: once, a completion
lacks, or its log-probabilities are no numbers. Requests are completed one after the other: which of them meet would
show in the last bit of sums.
"""

from __future__ import annotations

import argparse
import math
import os
import threading
import time
from itertools import count
from typing import Any

from vidbridge.rollout.serve import HOST, TINY
from vidbridge.rollout.served_shared_prefix import ServedSharedPrefix
from vidbridge.rollout.server import RolloutServer
from vidbridge.rollout.wire import Request

FAULTS = ("none", "exit", "hang", "fewer", "nan")


class FaultyEngine(ServedSharedPrefix):
    def __init__(self, fault: str, at: int) -> None:
        super().__init__(str(TINY), device="cpu")
        self.fault, self.at, self.requests, self.turn = fault, at, count(1), threading.Lock()

    def complete(self, request: Request) -> list[dict[str, Any]]:
        with self.turn:
            is_now = next(self.requests) == self.at
            outputs = super().complete(request)
        if not is_now or self.fault == "none":
            return outputs
        if self.fault == "exit":
            os._exit(7)
        if self.fault == "hang":
            time.sleep(10**6)
        if self.fault == "fewer":
            return outputs[1:]
        return [{**outputs[0], "logprobs": [math.nan] * len(outputs[0]["token_ids"])}, *outputs[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--at", type=int, default=1, help="at which request")
    options = parser.parse_args()
    with RolloutServer((HOST, options.port), FaultyEngine(options.fault, options.at)) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
