"""The exact judge behind the OpenAI protocol, on this machine alone: the remote path without a model.

    python -m vidbridge.shapes_world.serve --port 8000 &
    python train.py judge=openai judge.answers.model=exact

It understands vidbridge's judge prompts about the shapes world and nothing else. It answers to any name; with one of
its own, the cache does not take its replies for those of a model.
"""

from __future__ import annotations

import argparse
import json
import time
from http import HTTPStatus
from typing import Any, Mapping, Sequence

from vidbridge.judges.chat_prompt import read_request
from vidbridge.runtime.json_http import JsonHandler, ThreadedServer
from vidbridge.shapes_world.exact_judge import ExactJudge

HOST = "127.0.0.1"


class Handler(JsonHandler):
    """POST ../chat/completions; everything else is unknown here."""

    def do_POST(self) -> None:
        body = self.body()
        if not self.path.endswith("/chat/completions"):
            self.respond(HTTPStatus.NOT_FOUND, {"error": {"message": f"there is no {self.path} here"}})
            return
        try:
            call = json.loads(body)
            text = answer(call)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.respond(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": {"message": str(error)}})
            return
        self.respond(HTTPStatus.OK, completion(text, call.get("model", "")))


def answer(call: Mapping[str, Any]) -> str:
    """The exact judge's reply to the body of a call. ValueError or KeyError where it is no prompt for it."""
    request = read_request(call["response_format"]["json_schema"]["name"], call["messages"])
    (reply,) = ExactJudge().ask([request])
    assert isinstance(reply, str)
    return reply


def completion(text: str, model: str) -> dict[str, Any]:
    """The body of a response with one choice."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "exact",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    port = parser.parse_args(argv).port
    try:
        listening = ThreadedServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen at port {port}: {error}; choose another with --port")
    with listening as server:
        print(f"http://{HOST}:{server.server_address[1]}/v1", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
