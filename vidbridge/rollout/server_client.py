"""A rollout server as its client sees it: calls over HTTP, and what can go wrong with them."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vidbridge.errors import RolloutError
from vidbridge.rollout.wire import OTHER_WEIGHTS

QUICK_S = 10.0  # to say how it is


class ServerFault(Exception):
    """A server has not done what it was asked for; another one may."""


class Late(ServerFault):
    """It has not answered in time."""


@dataclass(frozen=True)
class Server:
    """A server at an address. Every call may raise ServerFault, whose message says what has gone wrong."""

    address: str
    key: str | None = field(default=None, repr=False)

    def get(self, path: str, timeout_s: float) -> dict[str, Any]:
        return self._call("GET", path, b"", timeout_s)

    def post(self, path: str, message: bytes, timeout_s: float) -> dict[str, Any]:
        return self._call("POST", path, message, timeout_s)

    def _call(self, method: str, path: str, message: bytes, timeout_s: float) -> dict[str, Any]:
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=timeout_s)
        until = time.monotonic() + timeout_s
        try:
            connection.request(method, parts.path + path, message, self._headers())
            response = connection.getresponse()
            body = bytearray()
            while piece := response.read1(1 << 20):  # a server that drips has no more time than others
                body += piece
                if time.monotonic() > until:
                    raise TimeoutError
        except (TimeoutError, socket.timeout) as error:
            raise Late(f"no whole answer to {path} within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerFault(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        finally:
            connection.close()
        try:
            answer = json.loads(bytes(body))
        except ValueError as error:
            raise ServerFault(f"its answer to {path} (status {response.status}) is not JSON") from error
        if not isinstance(answer, dict):
            raise ServerFault(f"its answer to {path} is {type(answer).__name__}")
        if response.status == OTHER_WEIGHTS:
            raise ServerFault(f"it has other weights ({answer.get('version') or 'none, as after a start'})")
        if response.status == 400 and answer.get("is_prompt"):
            raise RolloutError(f"{answer.get('error')} [{self.address}]")
        if response.status != 200:
            raise ServerFault(f"status {response.status}: {str(answer.get('error'))[:300]}")
        return answer

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}
