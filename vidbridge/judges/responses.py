"""From the response of a server to the text that a judge's parser reads; from an error to what it means.

The parsers (base.py) stay as strict as they are: a reply is the object asked for and nothing else. What is taken off
here stands around a reply by the habits of servers, can be told from it without doubt, and is taken off once.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Mapping

from vidbridge.judges.base import JudgeUnavailable

CUT = "length"
TOO_SHORT = "it was cut: raise judge.answers.max_reply_tokens, or turn thinking off by judge.answers.extra_body"
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts")  # fields for what a model thinks
_THOUGHT_PARTS = ("thinking", "reasoning")  # parts of a content that is a list
_TEXT_PARTS = ("text", "output_text")
_THINK_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
_FENCE = re.compile(r"```(?:json)?[ \t]*\r?\n(?P<inside>.*)\r?\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_BLANKS = " \t\r\n"  # those of JSON
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+"


def text_of(completion: Any) -> str:
    """Return what the only choice says, undressed. JudgeUnavailable where there is no text, with the reason.

    >>> text_of("<html><title>502</title><h1>Bad gateway</h1></html>")
    Traceback (most recent call last):
    vidbridge.judges.base.JudgeUnavailable: a page in place of a reply, is base_url right? 502 Bad gateway
    """
    if isinstance(completion, str):
        if re.match(r"\s*(data|event|id|retry)?:", completion):
            raise JudgeUnavailable("the server answers with a stream; vidbridge asks for whole replies, as others give")
        kind = "page" if is_page(completion) else "text"
        shown = plain(completion) or "nothing"
        raise JudgeUnavailable(f"a {kind} in place of a reply, is base_url right? {shown}")
    if error := getattr(completion, "error", None):
        raise JudgeUnavailable(f"the server says 200 and an error: {plain(error)}")
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        count = len(choices) if isinstance(choices, list) else "no"
        raise JudgeUnavailable(f"{count} choices in the response where one was asked for: {plain(completion)}")
    message, ended = getattr(choices[0], "message", None), finish_reason(completion)
    if refusal := getattr(message, "refusal", None):
        raise JudgeUnavailable(f"the model refuses: {plain(refusal)}")
    if ended == "content_filter":
        raise JudgeUnavailable("a content filter of the server withholds the reply")
    text = _content(getattr(message, "content", None))
    if not text.strip(_BLANKS):
        raise JudgeUnavailable(f"no text in the response ({_instead(message, ended)})")
    return text.strip(_BLANKS) if ended == CUT else undressed(text)  # the end of a cut one may be that of a quotation


def finish_reason(completion: Any) -> str | None:
    """Why the first choice ended, where it says so."""
    choices = getattr(completion, "choices", None)
    ended = getattr(choices[0], "finish_reason", None) if isinstance(choices, list) and choices else None
    return ended if isinstance(ended, str) else None


def undressed(text: str) -> str:
    """A reply without a byte order mark, one closed block of thoughts before it, and one fence around all the rest.

    Nothing is searched for: what is left is the whole of the text, for the parser to take or refuse. Thoughts that name
    their own tag again cannot be told from the reply; they stay, and with them it is none.

    >>> undressed('<think>It may be {"score": 0}.</think> {"score": 2}')
    '{"score": 2}'
    >>> undressed('```json\\n{"score": 2}\\n```'), undressed('Well: {"score": 2}')
    ('{"score": 2}', 'Well: {"score": 2}')
    """
    bare = text.removeprefix("\ufeff").strip(_BLANKS)
    for opening, closing in _THINK_TAGS:
        thoughts, _, said = bare.partition(closing)
        # some chat templates open the thoughts themselves: then the reply has the end of them alone
        if bare.count(closing) == 1 and opening not in thoughts.removeprefix(opening) and opening not in said:
            bare = said.strip(_BLANKS)
            break
    fenced = _FENCE.fullmatch(bare)
    return fenced["inside"] if fenced and "```" not in fenced["inside"] else bare


def is_page(text: str) -> bool:
    return re.match(r"\s*<(!doctype|html|\?xml|head|body)\b", text, re.IGNORECASE) is not None


def plain(shown: object) -> str:
    """A text on one line; of a page what a reader would see."""
    text = str(shown)
    if is_page(text):
        text = re.sub(r"<(script|style)\b.*?</\1\s*>|<[^<>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(text.split())


def retry_after_s(headers: Mapping[str, str], text: str = "") -> float:
    """The seconds that a server asks to be left alone for; 0 where it does not ask.

    As a number, a date or a duration in its headers, or in the words of its message.

    >>> retry_after_s({"retry-after": "2"}), retry_after_s({"retry-after-ms": "1500"})
    (2.0, 1.5)
    >>> retry_after_s({"retry-after": "1m30s"}), retry_after_s({}, "Please try again in 1.5s. Visit ..")
    (90.0, 1.5)
    """
    milliseconds, header = headers.get("retry-after-ms", "").strip(), headers.get("retry-after", "").strip()
    if _is_number(milliseconds):
        return float(milliseconds) / 1000
    if _is_number(header):
        return float(header)
    if re.fullmatch(_DURATION, header):
        return _seconds(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError, OSError):
        pass
    told = re.search(rf"(?:try again in|retry in|retry after|retryDelay\W+)\s*({_DURATION})", text, re.IGNORECASE)
    return _seconds(told[1]) if told else 0.0


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _seconds(duration: str) -> float:
    """
    >>> _seconds("6m0.5s"), _seconds("20ms")
    (360.5, 0.02)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", duration)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _content(content: Any) -> str:
    """A text, or the texts of a list of parts; "" where a part is neither a text nor a thought."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind in _TEXT_PARTS and isinstance(text, str):
            texts.append(text)
        elif kind not in _THOUGHT_PARTS:
            return ""
    return "".join(texts)


def _instead(message: Any, ended: str | None) -> str:
    """Why there may be no text: how it ended, where there is some, and what helps."""
    told = [f"finish_reason {ended}"]
    thoughts = [name for name in _THOUGHTS if getattr(message, name, None)]
    told += [f"there is some in {name}, which is not the reply" for name in thoughts]
    if getattr(message, "tool_calls", None) or getattr(message, "function_call", None):
        told.append("it calls a tool, and none was offered")
    if isinstance(getattr(message, "content", None), list):
        told.append("content is a list with other parts than text")
    if ended == CUT:
        told.append(TOO_SHORT)
    elif thoughts:
        told.append("turn thinking off by judge.answers.extra_body, or tell the server to part thoughts and reply")
    return "; ".join(told)
