"""Replies that were given before, by people for instance: a file of requests with their replies is a judge too."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Sequence

from vidbridge.errors import ConfigError
from vidbridge.judges.base import Judge, JudgeRequest, JudgeUnavailable, Reply, parse_reply


class LabelledJudge(Judge):
    """Knows the replies of a JSONL file and no others; one line a request, as ``labelled`` writes it.

        {"kind": "grade", "question": "..", "reference": "..", "text": "..", "events": [], "reply": {"score": 2}}

    A reply that is null is not given yet.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._replies: dict[JudgeRequest, str] = {}
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
        except OSError as error:
            raise ConfigError(f"judge: cannot read the labels: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._read(line, f"{path}:{number}")

    def _read(self, line: str, where: str) -> None:
        try:
            fields = json.loads(line)
            reply = fields.pop("reply")
            request = JudgeRequest(**{**fields, "events": tuple(fields.get("events", ()))})
            if reply is not None:
                parse_reply(request, json.dumps(reply))
                self._replies[request] = json.dumps(reply)
        except (ValueError, KeyError, TypeError, AttributeError, JudgeUnavailable) as error:
            raise ConfigError(f"{where}: this is no labelled request: {error}") from error

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        missing = JudgeUnavailable(f"no label in {self.path}")
        return [self._replies.get(request, missing) for request in requests]


def labelled(request: JudgeRequest, reply: Reply) -> dict[str, Any]:
    """A line of such a file."""
    return {**asdict(request), "reply": json.loads(reply) if isinstance(reply, str) else None}
