"""What may stand in a text of the data, whatever file it comes from."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"<\|\w+\|>")  # as the families of Qwen, Llama, Phi and GPT write the tokens of their chats
_PLACEHOLDER = re.compile(r"<(?:video|image)>")
_APART = re.compile(rf"^[ \t]*{_PLACEHOLDER.pattern}[ \t]*(?:\n|\Z)|\A\s*{_PLACEHOLDER.pattern}\s*", re.MULTILINE)


def check_unicode(text: str, name: str) -> None:
    """ValueError for half of a character, which JSON can hold, and which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"field '{name}' is no Unicode text (half a character at index {error.start + 1})") from error


def check_text(text: str, name: str) -> None:
    """ValueError for a text of field ``name`` that is no Unicode or spells a control token.

    A control token in a row is left over from a chat, or put there to end the user's turn. Whatever got past here would
    be read as text all the same (text/chat_tokens.py). Tags such as <think> are text.
    """
    check_unicode(text, name)
    if found := _CONTROL.search(text):
        raise ValueError(f"field '{name}' spells the control token {found[0]}; take it out")


def without_placeholder(question: str, name: str) -> str:
    """``question`` without the <video> or <image> that says where the video goes: here it comes first anyway.

    It counts as a placeholder at the beginning, or on a line of its own, and as text elsewhere. ValueError when there
    is one of more videos, or nothing else.

    >>> without_placeholder("<video>\\nWhat next?", "problem"), without_placeholder("Which is it, <video>?", "problem")
    ('What next?', 'Which is it, <video>?')
    """
    rest, number = _APART.subn("", question)
    if not number:
        return question
    if number > 1 or _PLACEHOLDER.search(rest):
        found = len(_PLACEHOLDER.findall(question))
        raise ValueError(f"field '{name}' has {found} placeholders <video> or <image>, and a row has one video")
    if not rest.strip():
        raise ValueError(f"field '{name}' holds nothing but {question.strip()}")
    return rest.strip()
