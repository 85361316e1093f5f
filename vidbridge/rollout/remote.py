"""The rollout on servers elsewhere (``python -m vidbridge.rollout.serve``): weights are pushed, completions come back.

A completion is a function of weights, prompt, seed and index. So a prompt whose server goes away is asked of another
one, and what comes back is what would have come. Weights carry a version, and no server answers for another one.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, ClassVar, Collection, Mapping, Sequence

from vidbridge.config.checks import is_http, require, require_positive
from vidbridge.config.schema import FREE
from vidbridge.errors import RolloutError, RolloutLost
from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import Ended, EngineMemory, Progress, RolloutConfig
from vidbridge.rollout.server_client import QUICK_S, Late, Server, ServerFault
from vidbridge.rollout.servers import Servers
from vidbridge.rollout.vllm_parts import check_prompt, check_temperature, completions_of, name_of
from vidbridge.rollout.wire import GENERATE, STATE, Request, identity
from vidbridge.runtime import collectives
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

log = logging.getLogger(__name__)

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
            require(is_http(address), f"rollout.addresses: {address!r} is not http(s)://host:port")
        require(len(set(self.addresses)) == len(self.addresses), "rollout.addresses names a server twice")
        check_temperature(self.temperature)

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
        self.policy, self.max_rows, self.timeout_s = policy, max_rows, timeout_s
        self._config = config = policy.processor.config
        longest = policy.processor.max_prompt_tokens + max_completion_tokens
        self.max_tokens = min(longest, config.text_config.max_position_embeddings)
        dtype = str(policy.module.dtype).removeprefix("torch.")
        wanted = {**identity(config), "dtype": dtype, "max_tokens": self.max_tokens}
        self.servers = Servers(servers, wanted, timeout_s=timeout_s, patience_s=patience_s)
        self._job: Job | None = None  # the last one

    def sync(self, policy: Policy) -> None:
        """Push the weights as they are now to all servers; called by all ranks. RolloutLost where there is none.

        What is being completed is waited for: it belongs to the weights of before.
        """
        if self._job is not None:
            self._job.wait()
        self.policy = policy
        self.servers.push(policy)

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
        arguments = (job, self.servers.version, list(self.servers.live))
        job.thread = threading.Thread(target=self._deal, args=arguments, daemon=True)
        job.thread.start()

    def push_again(self, lacking: int, attempt: int) -> None:
        """Push the weights once more, because ``lacking`` prompts have no server; called by all ranks."""
        if attempt == ATTEMPTS:
            raise RolloutLost(
                f"the rollout servers failed {ATTEMPTS} times at the same batch, {lacking} prompts are lacking "
                f"({self.servers.told_away()}); look at their output, then go on with resume=auto"
            )
        if collectives.is_rank_0():
            log.warning("no rollout server is left for %d prompts: the weights are pushed again", lacking)
        self.servers.push(self.policy)

    def _deal(self, job: Job, version: str, live: list[Server]) -> None:
        """Ask for what is lacking, until it is there or no server is left."""
        waiting, load, running = deque(job.lacking), Counter[Server](), 0
        answers: SimpleQueue[tuple[int, Server, tuple[Completion, ...] | Exception]] = SimpleQueue()
        at_once = max(1, self.max_rows // job.group_size)
        first = collectives.rank() % max(1, len(live))
        live = live[first:] + live[:first]  # ranks do not all begin with the same
        try:
            for index in waiting:
                check_prompt(job.prompts[index], self._config, max_tokens=self.max_tokens, index=index)
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
                        self.servers.set_aside(server, answer)
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
        if answer.get("version") != request.version:
            raise ServerFault(f"it answered with the weights {answer.get('version')} for {request.version}")
        try:
            return completions_of(
                answer["outputs"],
                request.group_size,
                self.policy.processor.decode,
                greedy=request.sampling.greedy,
                name=name_of(request.prompt, request.index),
            )
        except (RolloutError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ServerFault(f"its completions cannot be used: {error}") from error
