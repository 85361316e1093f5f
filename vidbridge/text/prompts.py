"""How a task is put to the model, and how a completion is put together."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from vidbridge.text.options import LETTERS
from vidbridge.text.tags import answer_start

SYSTEM = (
    "Note what you see in <think> </think>, then reply in <answer> </answer>."
)


def chat(text: str, num_videos: int) -> tuple[Mapping[str, Any], ...]:
    """A system message and a user message: the videos first, then ``text``."""
    videos: list[dict[str, str]] = [{"type": "video"}] * num_videos
    return (
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [*videos, {"type": "text", "text": text}]},
    )


def completion(rationale: str, answer: str) -> str:
    """
    >>> completion("red square: grows.", "B")
    '<think>red square: grows.</think><answer>B</answer>'
    """
    return f"<think>{rationale}</think><answer>{answer}</answer>"


def option_lines(options: tuple[str, ...]) -> str:
    """
    >>> option_lines(("grows", "spins"))
    'A. grows\\nB. spins'
    """
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))


def without_system(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The bare question, as a model is asked that is not to reason first."""
    return tuple(message for message in messages if message["role"] != "system")


def as_answer(text: str) -> str:
    """A reply to the bare question, which is an answer as a whole unless it has an answer block of its own.

    >>> as_answer("B"), as_answer("<think>x</think><answer>B</answer>")
    ('<think></think><answer>B</answer>', '<think>x</think><answer>B</answer>')
    """
    return completion("", text) if answer_start(text) is None else text
