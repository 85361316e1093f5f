"""How a task is put to the model, and how a completion is put together."""

from __future__ import annotations

from typing import Any, Mapping

from vidbridge.text.options import LETTERS

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
