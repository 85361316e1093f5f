"""Chat models behind a server that speaks the OpenAI protocol: vLLM, SGLang, Ollama, transformers serve, or hosted."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
import weakref
from email.utils import parsedate_to_datetime
from typing import Any, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from vidbridge import dist
from vidbridge.checks import ConfigError
from vidbridge.judges.base import JudgeUnavailable, Reply
from vidbridge.judges.model import Said
from vidbridge.judges.prompts import Chat

try:
    import openai
except ImportError as error:
    raise ConfigError("judge=openai needs the package openai: pip install 'vidbridge[judge]'") from error

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # between two attempts
NO_KEY = "none"
_PASSING = (408, 409, 425, 429)  # beside 5xx: statuses that may be others the next time
_CHARS_A_TOKEN = 3.0  # an estimate for the rate limit, until the server says how many there were


class OpenAIChat:
    """Sends prompts side by side, at most ``max_concurrent`` at a time, and asks again what failed.

    The limits are those of a run: its ranks share them evenly.

    A prompt has ``deadline_s`` seconds of being answered and of waiting for the next attempt; the time it queues for
    its turn does not count. What is over the deadline, or refused for good, becomes JudgeUnavailable. Replies of
    another form than asked for are asked again too.
    """

    waits = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None = None,  # the NAME of the variable that holds the key
        max_concurrent: int = 64,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout_s: float = 60.0,  # of one attempt
        deadline_s: float = 180.0,
        max_reply_tokens: int = 512,
        temperature: float = 0.0,
    ) -> None:
        for name, value in (("max_concurrent", max_concurrent), ("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            if value <= 0:
                raise ConfigError(f"judge: {name} must be positive, got {value}")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ConfigError(f"judge: base_url must be http(s)://host[:port]/v1 without a password, got {base_url!r}")
        self.base_url, self.model = base_url, model
        self.max_concurrent = max(1, max_concurrent // dist.world_size())
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.max_reply_tokens, self.temperature = max_reply_tokens, temperature
        self._key = key_from(api_key_env)
        self._requests, self._tokens = Pace(requests_per_minute), Pace(tokens_per_minute)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    @property
    def identity(self) -> str:
        return json.dumps([self.model, self.temperature, self.max_reply_tokens])

    @property
    def where(self) -> str:
        return f"{self.model} at {self.base_url}"

    def chat(self, prompts: Sequence[Chat]) -> list[Said]:
        """From any thread, several at once: all share one connection pool and the limits."""
        if not prompts:
            return []
        return asyncio.run_coroutine_threadsafe(self._all(prompts), self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop in its own thread, started with the first prompt."""
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="judge", daemon=True).start()
                self._client = openai.AsyncOpenAI(base_url=self.base_url, api_key=self._key, max_retries=0)
                self._slots = asyncio.Semaphore(self.max_concurrent)
                self._loop = loop
                weakref.finalize(self, _close, loop, self._client)
            return self._loop

    async def _all(self, prompts: Sequence[Chat]) -> list[Said]:
        return await asyncio.gather(*(self._answer(prompt) for prompt in prompts))

    async def _answer(self, prompt: Chat) -> Said:
        """Attempt after attempt until there is a reply of the right form or the deadline."""
        spent, attempt = 0.0, 0
        while True:
            async with self._slots:
                await self._turn(prompt)
                started = time.monotonic()
                reply, least_s = await self._attempt(prompt, timeout_s=min(self.timeout_s, self.deadline_s - spent))
                spent += time.monotonic() - started
            if isinstance(reply, str) or least_s is None:
                return Said(reply=reply, seconds=spent)
            wait_s = max(backoff_s(attempt), least_s)
            if spent + wait_s >= self.deadline_s:
                return Said(reply=reply, seconds=spent)
            await asyncio.sleep(wait_s)
            spent, attempt = spent + wait_s, attempt + 1

    async def _turn(self, prompt: Chat) -> None:
        """Wait as long as the rate limits ask for."""
        tokens = self._most_tokens(prompt)
        now = time.monotonic()
        await asyncio.sleep(max(self._requests.reserve(1, now), self._tokens.reserve(tokens, now)))

    def _most_tokens(self, prompt: Chat) -> float:
        return prompt.num_chars / _CHARS_A_TOKEN + self.max_reply_tokens

    async def _attempt(self, prompt: Chat, *, timeout_s: float) -> tuple[Reply, float | None]:
        """A reply; without one, the least seconds to wait before the next attempt, None: there is no point in it."""
        form = {"name": prompt.name, "strict": True, "schema": prompt.schema}
        call: Callable[..., Awaitable[Any]] = self._client.chat.completions.create
        try:
            completion = await asyncio.wait_for(
                call(
                    model=self.model,
                    messages=list(prompt.messages),
                    response_format={"type": "json_schema", "json_schema": form},
                    temperature=self.temperature,
                    max_tokens=self.max_reply_tokens,
                    timeout=timeout_s,
                ),
                timeout_s,  # the client's own limit is one of each read: a server that drips would outlast it
            )
        except openai.APIError as error:
            why = self._shown(error.message, error.__cause__)
            return JudgeUnavailable(why), retry_after_s(error) if passes(error) else None
        except TimeoutError:
            return JudgeUnavailable(f"no whole response within {timeout_s:.1f} s"), 0.0
        except (ValueError, RecursionError):  # nested without end
            return JudgeUnavailable("the body of the response is not JSON"), 0.0
        used = getattr(getattr(completion, "usage", None), "total_tokens", None)
        if isinstance(used, int):
            self._tokens.correct(used - self._most_tokens(prompt))
        text = text_of(completion)
        if not text:
            return JudgeUnavailable(f"no text in the response, is base_url right? {self._shown(completion)}"), 0.0
        return prompt.checked(text), 0.0

    def _shown(self, *parts: object) -> str:
        """What went wrong; a server that repeats the key does not get it into a log."""
        text = " ".join(str(part) for part in parts if part)
        if self._key != NO_KEY:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:300]


def _close(loop: asyncio.AbstractEventLoop, client: openai.AsyncOpenAI) -> None:
    """Hang up and end the thread; from any thread, so nothing is waited for."""
    closed = asyncio.run_coroutine_threadsafe(client.close(), loop)
    closed.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


class Pace:
    """At most ``per_minute`` units a minute on all ranks, evenly spread; None: as they come."""

    def __init__(self, per_minute: float | None) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ConfigError(f"judge: a limit per minute must be positive or null, got {per_minute}")
        self.per_minute = None if per_minute is None else per_minute / dist.world_size()
        self._free_at = 0.0

    def reserve(self, units: float, now: float) -> float:
        """Seconds to wait before these units may go.

        >>> pace = Pace(60)
        >>> [pace.reserve(1, now=0.0), pace.reserve(3, now=0.0), pace.reserve(1, now=0.0), pace.reserve(1, now=9.0)]
        [0.0, 1.0, 4.0, 0.0]
        """
        if self.per_minute is None:
            return 0.0
        start = max(now, self._free_at)
        self._free_at = start + units * 60 / self.per_minute
        return start - now

    def correct(self, units: float) -> None:
        """So many more went than were reserved; fewer where it is negative."""
        if self.per_minute is not None:
            self._free_at += units * 60 / self.per_minute


def key_from(variable: str | None) -> str:
    """The key in that environment variable; servers of one's own take any."""
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"judge: api_key_env names the environment variable {variable}, which is not set")
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"judge: the key in {variable} has blanks, line ends or other signs that no header takes")
    return key


def passes(error: openai.APIError) -> bool:
    """Whether the same request may do better a little later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _PASSING or error.status_code >= 500
    return True  # no connection, no time, no valid body


def retry_after_s(error: openai.APIError) -> float:
    """The seconds that a server asks to be left alone for, given as a number or as a date; 0 where it does not ask."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    header = error.response.headers.get("retry-after", "")
    try:
        if re.fullmatch(r"\d+(\.\d+)?", header):
            return float(header)
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def backoff_s(attempt: int) -> float:
    """Twice as long each time, up to a limit, and never all at once: half of it is chance."""
    return min(FIRST_WAIT_S * 2 ** min(attempt, 16), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)


def text_of(completion: Any) -> str:
    """The text of the first choice, whatever a server may have sent in its place.

    >>> text_of("<html>Bad gateway</html>")
    ''
    """
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    content = getattr(message, "content", None)
    return content if isinstance(content, str) else ""
