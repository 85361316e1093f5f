"""The rollout on servers elsewhere (``python -m vidbridge.rollout.serve``): weights are pushed, completions come back.

A completion is a function of weights, prompt, seed and index. So a prompt whose server goes away is asked of another
one, and what comes back is what would have come. Weights carry a version, and no server answers for another one.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Callable, ClassVar, Collection, Iterable, Iterator, Mapping, Sequence, TypeVar, cast

import torch

from vidbridge.config.checks import require, require_positive
from vidbridge.errors import RolloutError, RolloutLost
from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import Ended, EngineMemory, Progress, RolloutConfig
from vidbridge.rollout.server_client import QUICK_S, Late, Server, ServerFault, is_address
from vidbridge.rollout.vllm_parts import MAX_TEMPERATURE, check_prompt, completions_of
from vidbridge.rollout.wire import BEGIN, END, GENERATE, PART, STATE, Request, identity, pack
from vidbridge.runtime import collectives
from vidbridge.runtime.progress import clock
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

log = logging.getLogger(__name__)

T = TypeVar("T")
FREE = {"free": True}
PART_BYTES = 256_000_000  # of weights in one message
BEGIN_S = 60.0  # to break off what it does, and be ready for weights
ATTEMPTS = 3  # pushes for one call of generate


@dataclass(frozen=True, kw_only=True)
class RemoteConfig(RolloutConfig):
    addresses: Sequence[str] = field(metadata=FREE)  # http://host:port of each server
    timeout_s: float = field(default=600.0, metadata=FREE)  # for all completions of a prompt, and for a part of weights
    patience_s: float = field(default=600.0, metadata=FREE)  # as long as no server is there

    is_elsewhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("rollout", self, "timeout_s", "patience_s")
        require(len(self.addresses) > 0, "rollout.addresses: at least one, such as [http://127.0.0.1:8200]")
        for address in self.addresses:
            require(is_address(address), f"rollout.addresses: {address!r} is not http(s)://host:port")
        require(len(set(self.addresses)) == len(self.addresses), "rollout.addresses names a server twice")
        most = MAX_TEMPERATURE
        require(self.temperature <= most, f"rollout.temperature={self.temperature:g}: vLLM takes no more than {most:g}")

    def engine_memory(self, weights: float) -> EngineMemory:
        return EngineMemory(weights=0.0, cache=0.0)  # on a rank

    def build(self, policy: Policy) -> RemoteRollout:
        return RemoteRollout(
            policy,
            [Server(address.rstrip("/"), os.environ.get("VLLM_API_KEY")) for address in self.addresses],
            max_rows=self.max_rows,
            max_completion_tokens=self.max_completion_tokens,
            timeout_s=self.timeout_s,
            patience_s=self.patience_s,
        )


@dataclass
class Job:
    """Prompts of this rank by their index, and what has come of them; a thread of its own asks for them."""

    rollout: RemoteRollout
    prompts: Mapping[int, EncodedPrompt]
    group_size: int
    sampling: SamplingParams
    seed: int
    ended: Ended | None
    progress: Progress | None
    done: dict[int, tuple[Completion, ...]] = field(default_factory=dict)
    error: Exception | None = None
    thread: threading.Thread | None = None
    _again: set[int] = field(default_factory=set)

    @property
    def lacking(self) -> list[int]:
        return [index for index in self.prompts if index not in self.done]

    def again(self) -> Collection[int]:
        return self._again

    def add(self, index: int, completions: tuple[Completion, ...]) -> None:
        self.done[index] = completions
        if self.ended is not None:
            self.ended(index, completions)
        if self.progress is not None:
            self.progress(len(self.done) / len(self.prompts))

    def wait(self) -> None:
        """Return when its thread has ended."""
        while self.thread is not None and self.thread.is_alive():
            self.thread.join(0.5)  # in between signals are heard

    def finish(self) -> list[tuple[Completion, ...]]:
        """Return the completions; called by all ranks, which push the weights again where one has no server left."""
        for attempt in itertools.count(1):
            self.wait()
            with collectives.fail_together():
                if self.error is not None:
                    raise self.error
            if not (lacking := sum(collectives.all_gather(len(self.lacking)))):
                break
            self.rollout.push_again(lacking, attempt)
            self._again |= set(self.lacking)
            self.rollout.begin(self)
        return [self.done[index] for index in self.prompts]


class RemoteRollout:
    """Prompts go to the server that has fewest of this rank's; ``max_rows`` completions are in flight on a rank.

    Every sync pushes the weights to all servers that can be reached. A server that fails is left out until the next
    one. Where none is left, all ranks push again, and only what is lacking is asked for: at most ATTEMPTS times, and
    waiting ``patience_s`` for a server to come back. Then it is RolloutLost, on all ranks.
    """

    def __init__(
        self,
        policy: Policy,
        servers: Sequence[Server],
        *,
        max_rows: int,
        max_completion_tokens: int,
        timeout_s: float,
        patience_s: float,
    ):
        self.policy, self.servers = policy, list(servers)
        self.max_rows, self.timeout_s, self.patience_s = max_rows, timeout_s, patience_s
        self.version, self.live = "", list[Server]()  # those that have the weights of this version
        self._run = collectives.all_gather(uuid.uuid4().hex[:12])[0]
        self._num_pushes = 0
        self._stuck: dict[Server, str] = {}  # servers that did not answer in time, and which start of theirs that was
        self._away: dict[Server, str] = {}  # and why
        self._job: Job | None = None
        self._config = config = policy.processor.config
        longest = policy.processor.max_prompt_tokens + max_completion_tokens
        self._wanted = {
            **identity(config),
            "dtype": str(policy.module.dtype).removeprefix("torch."),
            "max_tokens": min(longest, config.text_config.max_position_embeddings),
        }

    def sync(self, policy: Policy) -> None:
        """Push the weights as they are now to all servers; called by all ranks. RolloutLost where there is none.

        What is being completed is waited for: it belongs to the weights of before.
        """
        if self._job is not None:
            self._job.wait()
        self.policy = policy
        self._push()

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        return self.start(
            prompts, group_size, sampling, seed=seed, indices=indices, ended=ended, progress=progress
        ).finish()

    def start(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> Job:
        """Begin what ``generate`` does, in a thread of its own; ``ended`` and ``progress`` are called from it."""
        indices = range(len(prompts)) if indices is None else indices
        by_index = dict(zip(indices, prompts, strict=True))
        job = Job(self, by_index, group_size, sampling, seed, ended, progress)
        self.begin(job)
        return job

    def begin(self, job: Job) -> None:
        """Ask for what is lacking, with the weights that the servers have now."""
        self._job = job
        job.thread = threading.Thread(target=self._deal, args=(job, self.version, list(self.live)), daemon=True)
        job.thread.start()

    def push_again(self, lacking: int, attempt: int) -> None:
        """Push the weights once more, because ``lacking`` prompts have no server; called by all ranks."""
        if attempt == ATTEMPTS:
            raise RolloutLost(
                f"the rollout servers failed {ATTEMPTS} times at the same batch, {lacking} prompts are lacking "
                f"({self._on_rank_0(self._told_away)}); look at their output, then go on with resume=auto"
            )
        if collectives.is_rank_0():
            log.warning("no rollout server is left for %d prompts: the weights are pushed again", lacking)
        self._push()

    def _deal(self, job: Job, version: str, live: list[Server]) -> None:
        """Ask for what is lacking, until it is there or no server is left."""
        waiting, load, running = deque(job.lacking), Counter[Server](), 0
        answers: SimpleQueue[tuple[int, Server, tuple[Completion, ...] | Exception]] = SimpleQueue()
        at_once = max(1, self.max_rows // job.group_size)
        first = collectives.rank() % max(1, len(live))
        live = live[first:] + live[:first]  # ranks do not all begin with the same
        try:
            for index in waiting:
                name = job.prompts[index].uid or f"prompt {index}"
                check_prompt(job.prompts[index], self._config, max_tokens=self._wanted["max_tokens"], name=name)
            while waiting or running:
                while waiting and running < at_once and live:
                    index, server = waiting.popleft(), min(live, key=load.__getitem__)
                    ask = threading.Thread(target=self._ask, args=(job, index, version, server, answers), daemon=True)
                    ask.start()
                    load[server], running = load[server] + 1, running + 1
                if not running:
                    return
                index, server, answer = answers.get()
                load[server], running = load[server] - 1, running - 1
                if isinstance(answer, ServerFault):
                    waiting.append(index)
                    if server in live:
                        live.remove(server)
                        self._set_aside(server, answer)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    job.add(index, answer)
        except Exception as error:
            job.error = error

    def _ask(self, job: Job, index: int, version: str, server: Server, answers: SimpleQueue[Any]) -> None:
        """Put the completions of a prompt, or what went wrong, into ``answers``; a server is asked twice."""
        request = Request(
            version=version,
            prompt=job.prompts[index],
            group_size=job.group_size,
            sampling=job.sampling,
            seed=job.seed,
            index=index,
            suppressed_ids=self.policy.suppressed_ids,
        )
        try:
            message = request.pack()
            try:
                answer = self._completed(request, message, server)
            except Late:
                raise
            except ServerFault as fault:
                if server.get(STATE, QUICK_S).get("version") != version:
                    raise
                log.warning("rollout server %s: %s; it is asked again", server.address, fault)
                answer = self._completed(request, message, server)
        except Exception as error:
            answers.put((index, server, error))
        else:
            answers.put((index, server, answer))

    def _completed(self, request: Request, message: bytes, server: Server) -> tuple[Completion, ...]:
        answer = server.post(GENERATE, message, self.timeout_s)
        name = request.prompt.uid or f"prompt {request.index}"
        if answer.get("version") != request.version:
            raise ServerFault(f"it answered with the weights {answer.get('version')} for {request.version}")
        try:
            return completions_of(
                answer["outputs"],
                request.group_size,
                self.policy.processor.decode,
                greedy=request.sampling.greedy,
                name=name,
            )
        except (RolloutError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ServerFault(f"its completions cannot be used: {error}") from error

    def _push(self) -> None:
        """Give the weights as they are now to all servers that can be reached, at least one; called by all ranks."""
        since = time.monotonic()
        while True:
            self._num_pushes += 1
            version = f"{self._run}-{self._num_pushes}"
            live = self._begun(version)
            if live:
                live = self._pushed(version, live)
            if live:
                self.version, self.live = version, live
                return
            waited = self._on_rank_0(lambda: time.monotonic() - since)
            if waited > self.patience_s:
                raise RolloutLost(
                    f"no rollout server for {clock(waited)} ({self._on_rank_0(self._told_away)}): start them "
                    "(python -m vidbridge.rollout.serve), or change rollout.addresses; then go on with resume=auto"
                )
            time.sleep(min(2.0, self.patience_s))

    def _begun(self, version: str) -> list[Server]:
        """Return the servers that are ready for weights. ConfigError on all ranks for one of another model."""

        def begin(server: Server) -> None:
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

        return self._on_rank_0(lambda: self._each(self.servers, begin))

    def _pushed(self, version: str, live: list[Server]) -> list[Server]:
        """Return those of ``live`` that have all weights; called by all ranks, which gather them for the first one."""
        number = 0
        for number, part in enumerate(_parts(self.policy.weights()), start=1):
            if collectives.is_rank_0():
                message = pack({"version": version, "part": number - 1}, part)
                live = self._each(live, lambda server: server.post(PART, message, self.timeout_s))
        end = pack({"version": version, "parts": number})
        return self._on_rank_0(lambda: self._each(live, lambda server: server.post(END, end, self.timeout_s)))

    def _each(self, servers: Iterable[Server], call: Callable[[Server], Any]) -> list[Server]:
        """Call for each server side by side; return those where it went well. Other errors than theirs are raised."""

        def tried(server: Server) -> Exception | None:
            try:
                call(server)
            except Exception as error:
                return error
            return None

        servers = list(servers)
        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            errors = dict(zip(servers, pool.map(tried, servers)))
        for server, error in errors.items():
            if isinstance(error, ServerFault):
                self._set_aside(server, error)
            elif error is not None:
                raise error
            elif self._away.pop(server, None):
                log.warning("rollout server %s is back", server.address)
        return [server for server, error in errors.items() if error is None]

    def _on_rank_0(self, call: Callable[[], T]) -> T:
        """Return on all ranks what ``call`` gives on the first one, or raise its error."""
        value, failed = None, None
        if collectives.is_rank_0():
            try:
                value = call()
            except Exception as error:
                failed = error
        value, failed = collectives.all_gather((value, failed))[0]
        if failed is not None:
            raise failed
        return cast(T, value)

    def _set_aside(self, server: Server, fault: Exception) -> None:
        if server not in self._away:
            log.warning("rollout server %s: %s; going on without it", server.address, fault)
        self._away[server] = str(fault)

    def _told_away(self) -> str:
        return "; ".join(f"{server.address}: {why}" for server, why in self._away.items()) or "none was asked"


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
