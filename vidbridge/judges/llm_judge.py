"""A judge that is a language model: prompts, a cache before it, and a limit to how much may go unscored.

    request -> known? -> prompt -> chat model -> reply of the right form? -> cache
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, deque
from dataclasses import astuple, dataclass
from typing import Protocol, Sequence

import numpy as np

from vidbridge.errors import JudgeLost
from vidbridge.judges.base import Judge, JudgeRequest, JudgeUnavailable, Reply
from vidbridge.judges.chat_prompt import VERSION, ChatPrompt, chat_prompt
from vidbridge.judges.reply_cache import ReplyCache
from vidbridge.runtime import collectives


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A chat model's reply to one prompt, and how long it took."""

    reply: Reply
    seconds: float


class ChatModel(Protocol):
    waits: bool  # replies come from elsewhere, so that many threads may ask at once
    deadline_s: float  # that a prompt is waited for
    last_failure: str  # why the last attempt failed that is repeated

    @property
    def identity(self) -> str:
        """Return all that decides a reply beside the prompt, as far as it is known: a server may not take all of it."""

    @property
    def where(self) -> str:
        """Return what it is called and where it is, for messages."""

    @property
    def notes(self) -> str:
        """Return what is not asked as the configuration says."""

    def chat(self, prompts: Sequence[ChatPrompt]) -> list[Said]:
        """One for each prompt, in order. It never raises for what a model or a server does."""


class ModelJudge(Judge):
    """``answers`` judges open answers (grade, verdict), and captions (extract, entail) unless ``events`` does.

    Raises JudgeLost when more than ``max_unscored_frac`` of the last ``window`` requests have no reply.
    """

    free = ("cache", "window", "max_unscored_frac", "slack")  # keys that may differ when a run is resumed

    def __init__(
        self,
        *,
        answers: ChatModel,
        events: ChatModel | None = None,
        cache: ReplyCache | None = None,
        window: int = 256,
        max_unscored_frac: float = 0.5,
        slack: float = 0.0,
    ) -> None:
        if window < 1 or not 0 <= max_unscored_frac <= 1 or not 0 <= slack <= 1:
            raise ValueError(
                "judge.window must be positive, judge.max_unscored_frac and judge.slack parts of 1; "
                f"got {window}, {max_unscored_frac} and {slack}"
            )
        events = answers if events is None else events
        self.models = {"grade": answers, "verdict": answers, "extract": events, "entail": events}
        self.waits = answers.waits and events.waits
        self.deadline_s = max(answers.deadline_s, events.deadline_s)
        self.cache = ReplyCache() if cache is None else cache
        self.max_unscored_frac = max_unscored_frac
        self.slack = slack
        self._lock = threading.Lock()
        self._unscored: deque[bool] = deque(maxlen=window)
        self._counts: Counter[str] = Counter()
        self._seconds: list[float] = []

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        keys = [self._key(request) for request in requests]
        known: dict[str, Reply] = {**self.cache.get(set(keys))}
        missing = {key: request for key, request in zip(keys, requests) if key not in known}  # the same one once
        fresh = self._chat(missing)
        # keys once more: what a server takes may be known only since it has been asked
        new = {self._key(missing[key]): reply for key, reply in fresh.items() if isinstance(reply, str)}
        self.cache.put(new)
        replies = [known[key] if key in known else fresh[key] for key in keys]
        self._count(replies, num_cached=sum(key in known for key in keys))
        return replies

    @property
    def where(self) -> str:  # type: ignore[override]
        return self._told("where", " and ")

    @property
    def last_failure(self) -> str:  # type: ignore[override]
        return self._told("last_failure", "; ")

    @property
    def notes(self) -> str:  # type: ignore[override]
        return self._told("notes", "; ")

    def _told(self, name: str, between: str) -> str:
        """Return what the models say, each once."""
        return between.join(filter(None, dict.fromkeys(getattr(model, name) for model in self.models.values())))

    def metrics(self) -> dict[str, float]:
        with self._lock:
            own = self._counts, self._seconds
            self._counts, self._seconds = Counter(), []
        of_ranks = collectives.all_gather(own)
        counts = sum((counts for counts, _ in of_ranks), Counter())
        seconds = [each for _, seconds in of_ranks for each in seconds]
        metrics = {"judge/requests": float(counts["requests"]), "judge/unscored": float(counts["unscored"])}
        if counts["requests"]:
            metrics["judge/cache_hit_frac"] = counts["cached"] / counts["requests"]
        if seconds:
            p50, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
            metrics |= {"judge/latency_p50_s": p50, "judge/latency_p95_s": p95}
        return metrics

    def _key(self, request: JudgeRequest) -> str:
        parts = [self.models[request.kind].identity, VERSION, *astuple(request)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _chat(self, requests: dict[str, JudgeRequest]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        for model in dict.fromkeys(self.models.values()):
            prompts = {key: chat_prompt(each) for key, each in requests.items() if self.models[each.kind] is model}
            for (key, prompt), said in zip(prompts.items(), model.chat(list(prompts.values())), strict=True):
                replies[key] = prompt.checked(said.reply)
                if isinstance(replies[key], JudgeUnavailable):
                    self.trouble = f"{model.where}: {replies[key]}"
                with self._lock:
                    self._seconds.append(said.seconds)
        return replies

    def _count(self, replies: Sequence[Reply], num_cached: int) -> None:
        failed = [isinstance(reply, JudgeUnavailable) for reply in replies]
        with self._lock:
            self._counts["requests"] += len(replies)
            self._counts["cached"] += num_cached
            self._counts["unscored"] += sum(failed)
            self._unscored.extend(failed)
            window, num_failed = len(self._unscored), sum(self._unscored)
        if window == self._unscored.maxlen and num_failed > self.max_unscored_frac * window:
            raise JudgeLost(
                f"{num_failed} of the last {window} requests to the judge have no reply, more than "
                f"judge.max_unscored_frac={self.max_unscored_frac:g} allows. Last: {self.trouble}"
            )
