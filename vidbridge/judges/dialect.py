"""What servers of the OpenAI protocol differ in, and what a refusal says about it.

A request is made in the words that most servers take. Where one is refused, the message names what it was about; then
the next choice of that one thing is tried, and kept once the server has taken it (``OpenAIChat`` remembers it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

from vidbridge.judges.chat_prompt import Chat

_REFUSALS = (200, 400, 404, 405, 415, 422, 501)  # statuses that may be about the request; 200: a page, or an error
_NO_SUCH_PLACE = (404, 405)

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer of a server in place of a reply; ``is_page``: HTML, which no judge sends."""

    status: int
    text: str
    is_page: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The words of a request, each as most servers take it."""

    limit: str = "max_tokens"  # max_completion_tokens: models of OpenAI that think
    form: str = "json_schema"  # json_object: only that it is JSON; text: nothing, the prompt alone asks for it
    temperature: bool = True  # False: the server has one of its own
    system: bool = True  # False: there is no such role, its text opens the user's message
    path: str = ""  # after base_url; /v1 where that was left out

    @property
    def changes(self) -> dict[str, Any]:
        """Return what is not as usual of all that may change a reply: part of its key in the cache."""
        usual = Dialect()
        names = ("form", "temperature", "system")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}

    def arguments(self, prompt: Chat, *, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The arguments of ``chat.completions.create``, beside the model and the time it has."""
        messages = list(prompt.messages) if self.system else without_system(prompt.messages)
        arguments: dict[str, Any] = {"messages": messages, self.limit: max_tokens}
        if self.form == "json_schema":
            form = {"name": prompt.name, "strict": True, "schema": prompt.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": form}
        elif self.form == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        if self.temperature:
            arguments["temperature"] = temperature
        return arguments


# field -> how a refusal names it, and what is tried in turn
FALLBACKS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "limit": (r"max_(completion_)?tokens", ("max_tokens", "max_completion_tokens")),
    "form": (
        r"response.?format|json.?(schema|object|mode)|structured.?output|schema|grammar|guided|\bstrict\b",
        ("json_schema", "json_object", "text"),
    ),
    "temperature": (r"temperature", (True, False)),
    "system": (r"\bsystem\b|\broles?\b", (True, False)),
}


def fallback(dialect: Dialect, refusal: Refusal | None, base_url: str) -> Dialect | None:
    """The dialect to try after this refusal: the first thing it names is said in the next way. None: there is no other.

    >>> gpt_5 = Refusal(status=400, text="'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
    >>> fallback(Dialect(), gpt_5, "https://host/v1")
    Dialect(limit='max_completion_tokens', form='json_schema', temperature=True, system=True, path='')
    >>> fallback(Dialect(), Refusal(status=400, text="no such model"), "https://host/v1") is None
    True
    """
    if refusal is None or refusal.status not in _REFUSALS:
        return None
    if refusal.status in _NO_SUCH_PLACE or refusal.is_page:
        has_version = re.search(r"/v\d", base_url) is not None
        return None if has_version or dialect.path else replace(dialect, path="/v1")
    named: list[tuple[int, str, Any]] = []
    for field, (pattern, choices) in FALLBACKS.items():
        later = choices[choices.index(getattr(dialect, field)) + 1 :]
        if later and (match := re.search(pattern, refusal.text, re.IGNORECASE)):
            named.append((match.start(), field, later[0]))
    if not named:
        return None
    _, field, choice = min(named)
    return replace(dialect, **{field: choice})


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the same messages with the system's text at the head of the user's message.

    >>> without_system([{"role": "system", "content": "Judge."}, {"role": "user", "content": "It grows."}])
    [{'role': 'user', 'content': 'Judge.\\n\\nIt grows.'}]
    """
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    first, *others = [message for message in messages if message["role"] != "system"]
    content = first["content"]
    if isinstance(content, str):
        return [{**first, "content": f"{system}\n\n{content}"}, *others]
    return [{**first, "content": [{"type": "text", "text": system}, *content]}, *others]
