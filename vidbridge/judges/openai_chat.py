"""Chat models behind a server that speaks the OpenAI protocol: vLLM, SGLang, Ollama, transformers serve, or hosted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from vidbridge.config.checks import is_http
from vidbridge.errors import ConfigError
from vidbridge.judges.base import JudgeUnavailable, Reply
from vidbridge.judges.chat_prompt import Chat
from vidbridge.judges.dialect import FALLBACKS, Dialect, Refusal, fallback
from vidbridge.judges.llm_judge import Said
from vidbridge.judges.pacing import Pace, backoff_s, passes
from vidbridge.judges.responses import CUT, TOO_SHORT, finish_reason, is_page, plain, retry_after_s, text_of
from vidbridge.runtime import collectives

try:
    import openai
except ImportError as error:
    raise ConfigError("judge=openai needs the package openai: pip install 'vidbridge[judge]'") from error

NO_KEY = "none"
_CHARS_A_TOKEN = 3.0  # an estimate for the rate limit, until the server says how many there were
_OURS = ("model", "messages", "n", "stream", "response_format", "temperature", *FALLBACKS["limit"][1])
_HINTS = {  # what a refusal names -> what helps, where nothing else can be tried
    r"enable_thinking|thinking": "see judge.answers.extra_body",
    r"stream": "vidbridge asks for whole replies, not for a stream: another server is needed, or a setting of this one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one call."""

    reply: Reply
    least_s: float | None = 0.0  # to wait before the next attempt; None: there is no point in it
    refusal: Refusal | None = None
    accepted: bool = False  # the server took the request and sent a completion, whatever stands in it
    is_late: bool = False


class OpenAIChat:
    """Sends prompts side by side, at most ``max_concurrent`` at a time, and asks again what failed.

    The limits are those of a run: its ranks share them evenly. What this server takes (``Dialect``) is found out by the
    first request that is refused, while the others wait, and remembered.

    A prompt has ``deadline_s`` seconds of being answered and of waiting for the next attempt; the time it queues for
    its turn does not count. What is over the deadline, or refused for good, becomes JudgeUnavailable. Replies of
    another form than asked for are asked again too.
    """

    waits = True
    free = (  # keys that may differ when a run is resumed: which model it is decides the numbers, not where it is
        "base_url", "api_key_env", "max_concurrent", "requests_per_minute", "tokens_per_minute", "timeout_s",
        "deadline_s",
    )  # fmt: skip

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
        extra_body: Mapping[str, Any] | None = None,  # further fields of each request
    ) -> None:
        positive = {"max_concurrent": max_concurrent, "timeout_s": timeout_s, "deadline_s": deadline_s}
        for name, value in {**positive, "max_reply_tokens": max_reply_tokens}.items():
            if value <= 0:
                raise ConfigError(f"judge: {name} must be positive, got {value}")
        if extra_body is not None and not isinstance(extra_body, Mapping):
            raise ConfigError(f"judge: extra_body must be fields with their values, got {extra_body!r}")
        if taken := sorted(set(_OURS) & set(extra_body or ())):
            raise ConfigError(f"judge: extra_body must not give {', '.join(taken)}: there are keys, or rules, for that")
        self.base_url, self._query = address(base_url)
        self.model, self.extra_body = model, dict(extra_body or {})
        self.max_concurrent = max(1, max_concurrent // collectives.world_size())
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.max_reply_tokens, self.temperature = max_reply_tokens, temperature
        self._key = key_from(api_key_env)
        self._requests, self._tokens = Pace(requests_per_minute), Pace(tokens_per_minute)
        self.last_failure = ""
        self._dialect = Dialect()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    @property
    def identity(self) -> str:
        further = [part for part in (self.extra_body, self._dialect.changes) if part]
        return json.dumps([self.model, self.temperature, self.max_reply_tokens, *further], sort_keys=True)

    @property
    def where(self) -> str:
        return f"{self.model} at {self.base_url}"

    @property
    def notes(self) -> str:
        changes = ", ".join(f"{name}: {value}" for name, value in self._dialect.changes.items())
        return f"{self.where} does not take all that was asked for; it is asked with {changes}" if changes else ""

    def chat(self, prompts: Sequence[Chat]) -> list[Said]:
        """Return the reply; from any thread, several at once: all share one connection pool and the limits."""
        if not prompts:
            return []
        return asyncio.run_coroutine_threadsafe(self._all(prompts), self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop in its own thread, started with the first prompt."""
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="judge", daemon=True).start()
                self._client = openai.AsyncOpenAI(
                    base_url=self.base_url,
                    api_key=self._key,
                    max_retries=0,
                    default_query=self._query,
                    # Azure has its version in the query and the key in a header of its own
                    default_headers={"api-key": self._key} if "api-version" in self._query else None,
                )
                self._slots = asyncio.Semaphore(self.max_concurrent)
                self._learning = asyncio.Lock()
                self._loop = loop
                weakref.finalize(self, _close, loop, self._client)
            return self._loop

    async def _all(self, prompts: Sequence[Chat]) -> list[Said]:
        return await asyncio.gather(*(self._answer(prompt) for prompt in prompts))

    async def _answer(self, prompt: Chat) -> Said:
        """Attempt after attempt until there is a reply of the right form or the deadline."""
        spent, attempt = 0.0, 0
        why: Reply | None = None
        while True:
            async with self._slots:
                await self._turn(prompt)
                started, left_s = time.monotonic(), self.deadline_s - spent
                outcome = await self._attempt(prompt, timeout_s=min(self.timeout_s, left_s))
                spent += time.monotonic() - started
            if isinstance(outcome.reply, str) or outcome.least_s is None:
                return Said(reply=outcome.reply, seconds=spent)
            if why is None or not (outcome.is_late and left_s < self.timeout_s):  # a last attempt had little time
                why = outcome.reply
            self.last_failure = str(why)
            wait_s = max(backoff_s(attempt), outcome.least_s)
            if spent + wait_s >= self.deadline_s:
                return Said(reply=why, seconds=spent)
            await asyncio.sleep(wait_s)
            spent, attempt = spent + wait_s, attempt + 1

    async def _turn(self, prompt: Chat) -> None:
        """Wait as long as the rate limits ask for."""
        tokens = self._most_tokens(prompt)
        now = time.monotonic()
        await asyncio.sleep(max(self._requests.reserve(1, now), self._tokens.reserve(tokens, now)))

    def _most_tokens(self, prompt: Chat) -> float:
        return prompt.num_chars / _CHARS_A_TOKEN + self.max_reply_tokens

    async def _attempt(self, prompt: Chat, *, timeout_s: float) -> Outcome:
        """One call; after a refusal that names something of the dialect, further ones in other words.

        One request at a time looks for them. Those that were refused meanwhile ask as it found, all at once.
        """
        until = time.monotonic() + timeout_s
        while True:
            dialect = self._dialect
            outcome = await self._call(prompt, dialect, until)
            if fallback(dialect, outcome.refusal, self.base_url) is None:
                return outcome
            async with self._learning:
                if self._dialect == dialect:
                    return await self._learn(prompt, dialect, outcome, until)
            await self._turn(prompt)

    async def _learn(self, prompt: Chat, dialect: Dialect, first: Outcome, until: float) -> Outcome:
        """Ask in other words; those that the server takes are remembered, and no others."""
        outcome = first
        while (other := fallback(dialect, outcome.refusal, self.base_url)) and time.monotonic() < until:
            dialect = other
            await self._turn(prompt)
            outcome = await self._call(prompt, dialect, until)
        if outcome.accepted:
            self._dialect = dialect
        if outcome.refusal is None or outcome is first:
            return outcome
        why = f"{first.reply}; asked in other words too, at last: {outcome.reply}"
        return Outcome(reply=JudgeUnavailable(why), least_s=first.least_s)

    async def _call(self, prompt: Chat, dialect: Dialect, until: float) -> Outcome:
        timeout_s = max(until - time.monotonic(), 0.001)
        client = self._client
        if dialect.path:
            client = client.with_options(base_url=self.base_url + dialect.path)
        call: Callable[..., Awaitable[Any]] = client.chat.completions.create
        arguments = dialect.arguments(prompt, max_tokens=self.max_reply_tokens, temperature=self.temperature)
        try:
            completion = await asyncio.wait_for(
                call(model=self.model, extra_body=self.extra_body or None, timeout=timeout_s, **arguments),
                timeout_s,  # the client's own limit is one of each read: a server that drips would outlast it
            )
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APIError as error:
            why = JudgeUnavailable(self._shown(error.message, error.__cause__))
            return Outcome(reply=why, is_late=isinstance(error, openai.APITimeoutError))
        except TimeoutError:
            return Outcome(reply=JudgeUnavailable(f"no whole response within {timeout_s:.1f} s"), is_late=True)
        except (ValueError, RecursionError):  # nested without end, or in another encoding than UTF-8
            return Outcome(reply=JudgeUnavailable("the body of the response is not JSON in UTF-8"))
        used = getattr(getattr(completion, "usage", None), "total_tokens", None)
        if isinstance(used, int):
            self._tokens.correct(used - self._most_tokens(prompt))
        try:
            text = text_of(completion)
        except JudgeUnavailable as no_text:
            why = JudgeUnavailable(self._shown(no_text))
            if isinstance(completion, str):
                page = Refusal(status=200, text="", is_page=True) if is_page(completion) else None
                return Outcome(reply=why, refusal=page)
            if error_here := getattr(completion, "error", None):
                return Outcome(reply=why, refusal=Refusal(status=200, text=str(error_here)))
            return Outcome(reply=why, accepted=bool(getattr(completion, "choices", None)))
        reply = prompt.checked(text)
        if isinstance(reply, JudgeUnavailable) and finish_reason(completion) == CUT:
            reply = JudgeUnavailable(f"{reply} (finish_reason {CUT}: {TOO_SHORT})")
        return Outcome(reply=reply, accepted=True)

    def _refused(self, error: openai.APIStatusError) -> Outcome:
        """Return what a status beside 200 means, with a word of help."""
        body = error.response.text
        told = f"Error code: {error.status_code} - {plain(body)}" if is_page(body) else error.message
        if plain(told) == f"Error code: {error.status_code}" and body.strip():  # its words stand elsewhere
            told += f" - {body}"
        named = f"{error.param or ''} {error.message} {body}"  # what it is about is named first
        refusal = Refusal(status=error.status_code, text=named, is_page=is_page(body))
        least_s = retry_after_s(error.response.headers, body) if passes(error.status_code) else None
        hints = [hint for sign, hint in _HINTS.items() if least_s is None and re.search(sign, told, re.IGNORECASE)]
        return Outcome(reply=JudgeUnavailable("; ".join([self._shown(told), *hints])), least_s=least_s, refusal=refusal)

    def _shown(self, *parts: object) -> str:
        """Return what went wrong; a server that repeats the key does not get it into a log."""
        text = " ".join(str(part) for part in parts if part)
        if self._key != NO_KEY:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:300]


def _close(loop: asyncio.AbstractEventLoop, client: openai.AsyncOpenAI) -> None:
    """Hang up and end the thread; from any thread, so nothing is waited for."""
    closed = asyncio.run_coroutine_threadsafe(client.close(), loop)
    closed.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


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


def address(base_url: str) -> tuple[str, dict[str, str]]:
    """Return where the protocol begins, and the query of every request. ConfigError where it is no address.

    >>> address("http://gpu7:8000/v1/chat/completions")
    ('http://gpu7:8000/v1', {})
    >>> address("https://me.openai.azure.com/openai/deployments/judge/?api-version=2024-10-21")
    ('https://me.openai.azure.com/openai/deployments/judge', {'api-version': '2024-10-21'})
    """
    if not is_http(base_url.strip()):
        raise ConfigError(f"judge: base_url must be http(s)://host[:port]/v1 without a password, got {base_url!r}")
    parts = urlsplit(base_url.strip())
    query = dict(parse_qsl(parts.query))
    if secret := next((name for name in query if re.search(r"key|token|secret|sig|code", name, re.IGNORECASE)), None):
        raise ConfigError(f"judge: {secret}=.. in base_url would go on record: give the key by api_key_env")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), query
