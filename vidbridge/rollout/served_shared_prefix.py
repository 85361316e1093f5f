"""Our own rollout behind a server: for another machine or process, without vLLM."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch

from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.server import Aborted
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.rollout.wire import Request, identity, unpack
from vidbridge.types import Completion

_Waiting = tuple[Request, "Future[tuple[Completion, ...]]"]
NO_FRAMES = FrameBudget(fps=1.0, max_frames=2, min_pixels=1, max_pixels=1)  # prompts come as tensors


class ServedSharedPrefix:
    """Requests that wait at the same moment are completed together, as far as they ask for the same."""

    is_dead = False

    def __init__(self, path: str, *, device: str = "auto", dtype: str = "float32", max_rows: int = 128) -> None:
        module = load_model(path, device=device, dtype=dtype)
        processor = Processor.from_folder(path, NO_FRAMES)
        self.policy = Policy(module, processor)
        self.rollout = SharedPrefixRollout(self.policy, max_rows=max_rows)
        max_tokens = module.config.text_config.max_position_embeddings
        numbers = {"dtype": dtype, "max_tokens": max_tokens}
        self.about = {**identity(module.config), **numbers, "engine": "shared_prefix"}
        self._weights = dict(module.named_parameters())
        self._come: set[str] = set()
        self._aborted = threading.Event()
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        threading.Thread(target=self._work, name="rollout", daemon=True).start()

    def complete(self, request: Request) -> list[dict[str, Any]]:
        future: Future[tuple[Completion, ...]] = Future()
        self._waiting.put((request, future))
        return [
            {"token_ids": done.token_ids, "logprobs": done.sampler_logprobs, "finished": done.finished}
            for done in future.result()
        ]

    def abort(self) -> None:
        self._aborted.set()

    def begin_weights(self) -> None:
        self._aborted.clear()
        self._come.clear()

    @torch.no_grad()
    def take_weights(self, message: bytes) -> None:
        for name, weight in unpack(message)[1].items():
            self._weights[name].copy_(weight)
            self._come.add(name)

    def end_weights(self) -> list[str]:
        return sorted(self._weights.keys() - self._come)

    def close(self) -> None:
        self._waiting.put(None)

    def _work(self) -> None:
        """Complete what waits, until None does."""
        while (first := self._waiting.get()) is not None:
            waiting = [first]
            while not self._waiting.empty() and (more := self._waiting.get()) is not None:
                waiting.append(more)
            asked: dict[tuple[Any, ...], list[_Waiting]] = {}
            for request, future in waiting:
                alike = (request.sampling, request.seed, request.group_size, *request.suppressed_ids.tolist())
                asked.setdefault(alike, []).append((request, future))
            for together in asked.values():
                try:
                    self._complete(together)
                except Exception as error:  # those who wait are told
                    for _, future in together:
                        if not future.done():
                            future.set_exception(error)

    def _complete(self, together: list[_Waiting]) -> None:
        request, futures = together[0][0], {each.index: future for each, future in together}
        self.policy.suppressed_ids = request.suppressed_ids.to(self.policy.module.device)

        def go_on(share: float) -> None:
            if self._aborted.is_set():
                raise Aborted

        self.rollout.generate(
            [each.prompt for each, _ in together],
            1 if request.sampling.greedy else request.group_size,
            request.sampling,
            seed=request.seed,
            indices=[each.index for each, _ in together],
            ended=lambda index, done: futures[index].set_result(done),
            progress=go_on,
        )
