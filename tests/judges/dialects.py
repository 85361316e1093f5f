"""A judge server in the dialects that people meet: vidbridge.shapes_world.serve, with other refusals and replies."""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable
from urllib.parse import parse_qsl, urlsplit

from vidbridge.judges.chat_prompt import read_request
from vidbridge.runtime.json_http import ThreadedServer
from vidbridge.shapes_world import serve
from vidbridge.shapes_world.exact_judge import ExactJudge

KINDS = {"score": "grade", "verdict": "verdict", "events": "extract", "labels": "entail"}
Refused = tuple[int, Any] | None  # status and body: a text as it is, all else as JSON


@dataclass(frozen=True)
class Call:
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def form(self):
        return self.body.get("response_format", {}).get("type")

    @property
    def reply(self):
        """The exact judge's, whatever the prompt was made of."""
        content = self.body["messages"][-1]["content"].split("\n\n")[-1]  # behind the system's text, if it is in there
        key = json.loads(content.split("Reply with JSON alone: ")[1].replace("..", "null").split(":")[0] + ":0}")
        (reply,) = ExactJudge().ask([read_request(KINDS[next(iter(key))], [{"content": content}])])
        return reply


def choice(text, *, finish="stop", **message):
    body = serve.completion(text, "m")
    body["choices"][0]["finish_reason"] = finish
    body["choices"][0]["message"] |= message
    return body


@dataclass
class Dialect:
    """``refuses(call)`` is its error, or None; ``says(text)`` the body of its response."""

    refuses: Callable[[Call], Refused] = lambda call: None
    says: Callable[[str], Any] = choice
    headers: dict[str, str] = field(default_factory=dict)  # of a response
    content_type: str = "application/json"
    calls: list[tuple[Call, int]] = field(default_factory=list)  # with the status
    together: int = 0  # so many calls come before the first is answered
    come: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self):
        self.gate = threading.Barrier(max(self.together, 1))

    @property
    def statuses(self):
        return [status for _, status in self.calls]

    @property
    def taken(self):
        return [call for call, status in self.calls if status == 200]


class Handler(serve.Handler):
    def do_POST(self):
        dialect, parts = self.server.dialect, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = Call(parts.path, dict(parse_qsl(parts.query)), headers, body)
        with dialect.lock:
            dialect.come += 1
            waits = dialect.come <= dialect.together
        if waits:
            dialect.gate.wait()
        refused = dialect.refuses(call)
        status, said = (200, dialect.says(call.reply)) if refused is None else refused
        with dialect.lock:
            dialect.calls.append((call, status if refused is None or status != 200 else -200))
        text = said if isinstance(said, (bytes, str)) else json.dumps(said)
        payload = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        kind = "text/html" if payload.lstrip().startswith(b"<") else dialect.content_type
        for name, value in {"Content-Type": kind, "Content-Length": str(len(payload)), **dialect.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)


@contextmanager
def speaking(dialect):
    """The address of the server, without a /v1."""
    with ThreadedServer((serve.HOST, 0), Handler) as server:
        server.dialect = dialect
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://{serve.HOST}:{server.server_address[1]}"
        finally:
            server.shutdown()


def openai_error(message, param=None, code=None):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def thinks(call):
    """o-series and GPT-5: one complaint at a time."""
    if "max_tokens" in call.body:
        told = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        return 400, openai_error(told, "max_tokens", "unsupported_parameter")
    if call.body.get("temperature", 1) != 1:
        told = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is."
        return 400, openai_error(told, "temperature", "unsupported_value")


def renamed_in_chinese(call):
    return (400, openai_error("参数不支持", "max_tokens")) if "max_tokens" in call.body else None


def no_schema(call):
    return (400, openai_error("This response_format type is unavailable now")) if call.form == "json_schema" else None


def no_schema_as_text(call):
    if call.form == "json_schema":
        return 422, "Failed to deserialize the JSON body: response_format.type `json_schema` is unavailable at column 9"


def no_schema_by_api_version(call):
    if call.form == "json_schema":
        told = "response_format value as json_schema is enabled only for api versions 2024-08-01-preview and later"
        return 400, {"error": {"message": told, "code": "BadRequest"}}


def no_minimum_of_items(call):
    """A schema with keywords that the server's grammar does not know."""
    schema = json.dumps(call.body.get("response_format", {}))
    return (400, openai_error("Invalid schema: 'minItems' is not permitted")) if "minItems" in schema else None


def no_form_at_all(call):
    """pydantic where further fields are forbidden, with all that was sent repeated."""
    if "response_format" in call.body:
        told = {"type": "extra_forbidden", "loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}
        return 422, {"detail": [{**told, "input": call.body}]}


def error_is_a_text(call):
    if call.form in ("json_schema", "json_object"):
        return 400, {"error": "'response_format.type' must be 'text'"}


def not_implemented(call):
    return (501, {"message": "guided decoding is not available here"}) if call.form == "json_schema" else None


def refused_with_200(call):
    return (200, openai_error("temperature is deprecated for this model")) if "temperature" in call.body else None


def no_system(call):
    if call.body["messages"][0]["role"] == "system":
        return 400, {"object": "error", "message": "System role not supported", "type": "BadRequestError", "code": 400}


def roles_alternate(call):
    if [message["role"] for message in call.body["messages"]] != ["user"]:
        return 400, {"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}}


def everything(call):
    return thinks(call) or no_system(call) or no_form_at_all(call)


# name -> what it refuses, and what the last call that it takes must differ in from what is sent at first
REFUSES = {
    "thinks": (thinks, {"limit": "max_completion_tokens", "temperature": False}),
    "renamed_in_chinese": (renamed_in_chinese, {"limit": "max_completion_tokens"}),
    "no_schema": (no_schema, {"form": "json_object"}),
    "no_schema_as_text": (no_schema_as_text, {"form": "json_object"}),
    "no_schema_by_api_version": (no_schema_by_api_version, {"form": "json_object"}),
    "no_minimum_of_items": (no_minimum_of_items, {"form": "json_object"}),
    "no_form_at_all": (no_form_at_all, {"form": "text"}),
    "error_is_a_text": (error_is_a_text, {"form": "text"}),
    "not_implemented": (not_implemented, {"form": "json_object"}),
    "refused_with_200": (refused_with_200, {"temperature": False}),
    "no_system": (no_system, {"system": False}),
    "roles_alternate": (roles_alternate, {"system": False}),
    "everything": (
        everything,
        {"limit": "max_completion_tokens", "temperature": False, "system": False, "form": "text"},
    ),
}


def elsewhere(answer):
    """A server whose protocol begins at /v1, and what it says elsewhere."""
    return lambda call: None if call.path == "/v1/chat/completions" else answer


ELSEWHERE = {
    "json": (404, {"detail": "Not Found"}),
    "page": (404, "<!DOCTYPE html><html><head><title>404</title><style>p {}</style></head><p>Not Found</p></html>"),
    "text": (404, "404 page not found"),
    "method": (405, {"detail": "Method Not Allowed"}),
    "page_with_200": (200, "<html><title>Welcome</title><body>Models of this server</body></html>"),
}
