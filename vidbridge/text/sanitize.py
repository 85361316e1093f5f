"""What may stand in a text of the data, whatever file it comes from."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"<\|\w+\|>")  # as the families of Qwen, Llama, Phi and GPT write the tokens of their chats
_PLACEHOLDER = re.compile(r"<(?:video|image)>")
_APART = re.compile(
    rf"^[ \t]*(?:{_PLACEHOLDER.pattern}[ \t]*)+(?:\n|\Z)|\A\s*(?:{_PLACEHOLDER.pattern}\s*)+", re.MULTILINE
)


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


def without_placeholders(question: str, name: str, *, num_images: int = 0, num_videos: int = 1) -> str:
    """``question`` without the <video> or <image> that says where a clip goes: here they come first anyway.

    They count as placeholders at the beginning, or on a line of their own, and as text elsewhere. ValueError when there
    are more than the row shows, nothing else, or some inside the text of a row with images, which are told apart by
    where they stand.

    >>> without_placeholders("<video>\\nWhat next?", "problem")
    'What next?'
    >>> without_placeholders("Which is it, <video>?", "problem")
    'Which is it, <video>?'
    >>> without_placeholders("<image><image>\\nWhat differs?", "problem", num_images=2, num_videos=0)
    'What differs?'
    """
    rest = _APART.sub("", question)
    found, inside = (len(_PLACEHOLDER.findall(text)) for text in (question, rest))
    if inside and num_images:
        raise ValueError(f"field '{name}' has <image> or <video> inside the text, and clips are shown before it")
    if found == inside:
        return question
    if inside or found > num_images + num_videos:
        shown = [f"{n} {kind}{'s' * (n > 1)}" for n, kind in ((num_images, "image"), (num_videos, "video")) if n]
        told = f"field '{name}' has {found} placeholders <video> or <image>"
        raise ValueError(f"{told}, and the row has {' and '.join(shown)}")
    if not rest.strip():
        raise ValueError(f"field '{name}' holds nothing but {question.strip()}")
    return rest.strip()
