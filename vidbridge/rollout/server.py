"""A rollout server: an engine that samples for a training elsewhere, over HTTP.

It holds one version of the weights at a time, and every request says which version it is about. A request about another
one is refused (409): after a restart, while new weights come, and when another run has pushed its own. No completion
lives through a change of the weights. Its weights come from the learner; until then it has none.
"""

from __future__ import annotations

import logging
import secrets
import threading
import uuid
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Iterator, Mapping, Protocol

from vidbridge.errors import RolloutError
from vidbridge.rollout.wire import BEGIN, END, GENERATE, OTHER_WEIGHTS, PART, STATE, Request, told_in
from vidbridge.runtime.json_http import JsonHandler, ThreadedServer

log = logging.getLogger(__name__)


class Aborted(Exception):
    """A completion that was broken off because new weights come."""


class OtherWeights(Exception):
    """A request is about weights that are not there."""


class Served(Protocol):
    """An engine behind a server, called from many threads. Weights come while no completion is made."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What tells a client whether it fits: ``identity`` of the model, dtype, max_tokens; and engine."""

    @property
    def is_dead(self) -> bool:
        """Whether it will never work again."""

    def complete(self, request: Request) -> list[dict[str, Any]]:
        """Return token_ids, logprobs and finished of each completion; greedy ones are all alike, one stands for them.

        Raises RolloutError for a prompt that cannot be taken, Aborted after ``abort``.
        """

    def abort(self) -> None:
        """Break off all that is being completed."""

    def begin_weights(self) -> None:
        """New weights come, in parts; what has come of others that were never ended is forgotten."""

    def take_weights(self, message: bytes) -> None:
        """Take a message whose tensors are weights by their names."""

    def end_weights(self) -> list[str]:
        """Use the new weights, and none of what was made of old ones; return the names of those that have not come."""

    def close(self) -> None:
        """Let go of everything."""


class RolloutServer(ThreadedServer):
    """``key``, if there is one, must come with every request, as a bearer token."""

    def __init__(self, address: tuple[str, int], served: Served, key: str | None = None) -> None:
        super().__init__(address, Handler)
        self.served, self.key = served, key
        self.boot = uuid.uuid4().hex  # another one after a restart
        self.version: str | None = None
        self._coming: str | None = None  # the version that is being taken
        self._num_parts = 0
        self._running = 0
        self._changed = threading.Condition()
        self._taking = threading.Lock()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def state(self) -> dict[str, Any]:
        return {**self.served.about, "boot": self.boot, "version": self.version, "running": self._running}

    def generate(self, message: bytes) -> dict[str, Any]:
        request = Request.unpack(message)
        with self._completing(request.version):
            outputs = self.served.complete(request)
        return {"version": request.version, "outputs": outputs}

    def begin(self, message: bytes) -> dict[str, Any]:
        """Take weights of a new version; those that another was sending are no longer taken."""
        version = str(told_in(message)["version"])
        with self._changed:
            self.version, self._coming, self._num_parts = None, version, 0
            self.served.abort()
            self._changed.wait_for(lambda: self._running == 0)
        with self._taking:
            self._check_coming(version)
            self.served.begin_weights()
        return {}

    def part(self, message: bytes) -> dict[str, Any]:
        told = told_in(message)
        with self._taking:
            self._check_coming(told["version"])
            if told["part"] != self._num_parts:
                raise ValueError(f"part {told['part']} of the weights came in the place of part {self._num_parts}")
            self.served.take_weights(message)
            self._num_parts += 1
        return {}

    def end(self, message: bytes) -> dict[str, Any]:
        told = told_in(message)
        with self._taking:
            self._check_coming(told["version"])
            if told["parts"] != self._num_parts:
                raise ValueError(f"{self._num_parts} of {told['parts']} parts of the weights have come")
            if missing := self.served.end_weights():
                raise ValueError(f"weights that have not come: {', '.join(missing[:3])}, {len(missing)} in all")
            with self._changed:
                self.version, self._coming = told["version"], None
        return {"version": self.version}

    def _check_coming(self, version: Any) -> None:
        if version != self._coming:
            raise OtherWeights

    @contextmanager
    def _completing(self, version: str) -> Iterator[None]:
        with self._changed:
            if version != self.version:
                raise OtherWeights
            self._running += 1
        try:
            yield
        except Aborted as error:
            raise OtherWeights from error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


class Handler(JsonHandler):
    server: RolloutServer

    def do_GET(self) -> None:
        self._answer({STATE: lambda _: self.server.state()})

    def do_POST(self) -> None:
        server = self.server
        self._answer({GENERATE: server.generate, BEGIN: server.begin, PART: server.part, END: server.end})

    def _answer(self, routes: Mapping[str, Any]) -> None:
        body = self.body()
        try:
            if self.server.key and not secrets.compare_digest(
                self.headers.get("Authorization", "").encode(), f"Bearer {self.server.key}".encode()
            ):
                self.respond(HTTPStatus.UNAUTHORIZED, {"error": "the key in VLLM_API_KEY is another one here"})
            elif self.path not in routes:
                self.respond(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path} here"})
            else:
                self.respond(HTTPStatus.OK, routes[self.path](body))
        except OtherWeights:
            self.respond(OTHER_WEIGHTS, {"version": self.server.version})
        except (RolloutError, ValueError, KeyError, TypeError) as error:
            self.respond(HTTPStatus.BAD_REQUEST, {"error": str(error), "is_prompt": isinstance(error, RolloutError)})
        except ConnectionError:
            pass  # the client has gone
        except Exception as error:
            log.exception("%s", self.path)
            self.respond(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})
            if self.server.served.is_dead:  # whoever watches over the process starts it again
                threading.Thread(target=self.server.shutdown).start()
