"""vLLM behind a server: its own asynchronous engine, in processes of its own, with any of its arguments."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError, Future
from typing import Any, Coroutine, Sequence, TypeVar
from uuid import uuid4

import torch

from vidbridge.rollout import vllm_parts
from vidbridge.rollout.server import Aborted
from vidbridge.rollout.wire import Request, identity

T = TypeVar("T")


class ServedVllm:
    """``arguments`` are those of ``vllm serve``; what the rollout must have is set, as ``engine_arguments`` says."""

    def __init__(self, path: str, arguments: Sequence[str], *, dtype: str, max_tokens: int, max_rows: int) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in vllm_parts.ENVIRONMENT.items()})
        from transformers import AutoConfig
        from vllm import AsyncEngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.config = AutoConfig.from_pretrained(path)
        self.max_tokens = min(max_tokens, self.config.text_config.max_position_embeddings)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="python -m vidbridge.rollout.serve"))
        parser.set_defaults(
            **vllm_parts.engine_arguments(device, max_tokens=self.max_tokens, max_rows=max_rows),
            model=path,
            dtype=dtype,
            worker_extension_cls="vidbridge.rollout.vllm_worker.LearnerWeights",
        )
        self._engine_args = AsyncEngineArgs.from_cli_args(parser.parse_args(list(arguments)))
        self.about = {**identity(self.config), "dtype": dtype, "max_tokens": self.max_tokens, "engine": "vllm"}
        self._running: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self.engine = self._wait(self._start())

    async def _start(self) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM

        engine = AsyncLLM.from_engine_args(self._engine_args)
        await engine.collective_rpc("take_given_positions")
        return engine

    @property
    def is_dead(self) -> bool:
        return bool(self.engine.errored)

    def complete(self, request: Request) -> list[dict[str, Any]]:
        # the training has looked at it too, but what does not fit together would end the engine
        vllm_parts.check_prompt(request.prompt, self.config, max_tokens=self.max_tokens, index=request.index)
        future = asyncio.run_coroutine_threadsafe(self._completed(request), self._loop)
        with self._lock:
            self._running.add(future)
        try:
            return future.result()
        except CancelledError as error:
            raise Aborted from error
        finally:
            with self._lock:
                self._running.discard(future)

    async def _completed(self, request: Request) -> list[dict[str, Any]]:
        told = vllm_parts.sampling_params(
            request.sampling,
            request.group_size,
            seed=vllm_parts.seed_of(request.seed, request.index),
            suppressed_ids=request.suppressed_ids.tolist(),
        )
        given = vllm_parts.engine_input(request.prompt, self.config, version=request.version)
        last = None
        async for output in self.engine.generate(given, told, uuid4().hex):
            last = output
        assert last is not None
        return [vllm_parts.token_output(each) for each in sorted(last.outputs, key=lambda each: each.index)]

    def abort(self) -> None:
        with self._lock:
            for future in self._running:
                future.cancel()

    def begin_weights(self) -> None:
        self._wait(self.engine.collective_rpc("begin_weights"))

    def take_weights(self, message: bytes) -> None:
        self._wait(self.engine.collective_rpc("take_weights", args=(message,)))

    def end_weights(self) -> list[str]:
        of_workers = self._wait(self.engine.collective_rpc("end_weights"))
        self._wait(self._forget())
        return sorted({name for lacking in of_workers for name in lacking})

    async def _forget(self) -> None:
        await self.engine.reset_prefix_cache()
        await self.engine.reset_mm_cache()
        await self.engine.reset_encoder_cache()

    def close(self) -> None:
        self.engine.shutdown()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
