"""Videos read in other processes: one that hangs, crashes or eats memory costs its deadline, not the run."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
import weakref
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np

from vidbridge.errors import VideoError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.worker import to_request
from vidbridge.types import Clip, ImageRef, VideoRef, Visual

RECYCLE_AFTER = 500  # videos, so that no leak of a decoder grows large
RECYCLE_MB = 1024  # of memory ever held
MAX_WORKER_MB = 4096  # a worker that asks for more is told that there is none
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class WorkerPool:
    """Up to ``size`` processes, started when they are needed; calls from as many threads run side by side."""

    def __init__(self, size: int, *, deadline_s: float) -> None:
        self.size, self.deadline_s = size, deadline_s
        self._idle: LifoQueue[_Worker | None] = LifoQueue()
        for _ in range(size):
            self._idle.put(None)

    def decode(self, visual: Visual, frames: FrameBudget) -> Clip:
        """Return what ``decode.decode`` gives; VideoError with reason deadline, crashed or memory."""
        head, payload = self._ask(to_request(visual, frames), visual.path)
        num_frames = head["shape"][0]
        times_s = payload[: 8 * num_frames].view(np.float64)
        pixels = payload[8 * num_frames :].reshape(head["shape"])
        return Clip(frames=pixels, times_s=times_s, is_image=isinstance(visual, ImageRef))

    def describe(self, path: str) -> dict[str, Any]:
        """``{"duration_s": 4.0, "height": 48, "width": 64}``"""
        return self._ask(to_request(VideoRef(path=path), None), path)[0]["about"]

    def close(self) -> None:
        for _ in range(self.size):
            if worker := self._idle.get():
                worker.stop()

    def _ask(self, request: dict[str, Any], path: str) -> tuple[dict[str, Any], np.ndarray]:
        worker = self._idle.get()
        kept: _Worker | None = None
        try:
            worker = worker or _Worker()
            head, payload = worker.ask(request, time.monotonic() + self.deadline_s)
            if worker.num_asked < RECYCLE_AFTER and head["peak_mb"] < RECYCLE_MB:
                kept = worker
        except TimeoutError as error:
            raise VideoError(path, "deadline", f"was not read within {self.deadline_s:g} s") from error
        except EOFError as error:
            raise VideoError(path, "crashed", "ended the process that read it") from error
        finally:
            if worker is not None and kept is None:
                worker.stop()
            self._idle.put(kept)
        if "error" in head:
            raise VideoError(*head["error"])
        return head, payload


class _Worker:
    """One process. It ends with this object, and when this process does, for then its input ends."""

    def __init__(self) -> None:
        # all that can be imported here: an effect may be from outside of the package
        paths = os.pathsep.join([str(Path(__file__).parents[2]), *map(os.path.abspath, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vidbridge.media.worker", str(MAX_WORKER_MB)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the run, which ends it
            bufsize=0,
        )
        self._ended = weakref.finalize(self, _end, self._process)
        self.num_asked = 0

    def ask(self, request: dict[str, Any], until: float) -> tuple[dict[str, Any], np.ndarray]:
        """The head of the reply and its bytes. TimeoutError when they are not there in time, EOFError when it ended."""
        self.num_asked += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise EOFError from error
        head = json.loads(self._receive(int.from_bytes(self._receive(4, until).tobytes()), until).tobytes())
        shape = head.get("shape", (0,))
        return head, self._receive(8 * shape[0] + math.prod(shape), until)

    def stop(self) -> None:
        self._ended()

    def _receive(self, number: int, until: float) -> np.ndarray:
        """The next ``number`` bytes of the reply, read straight to where they stay."""
        assert self._process.stdout is not None
        received, done = np.empty(number, np.uint8), 0
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while done < number:
            if not poll.poll(max(until - time.monotonic(), 0) * 1000):
                raise TimeoutError
            count = os.readv(self._process.stdout.fileno(), [received.data[done:]])
            if not count:
                raise EOFError
            done += count
        return received


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
