"""How a task is put to the model, and how a completion is put together. The words themselves: conf/prompt/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from vidbridge.text.options import LETTERS
from vidbridge.text.tags import answer_start

Messages = tuple[Mapping[str, Any], ...]  # as chat templates take them


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """The words that a sample is put in. Its own texts replace the placeholders and are taken as they are.

    >>> template = PromptTemplate(text="{question} Answer in {{braces}}.")
    >>> template.messages({"question": "What is {x}?"}, num_videos=1)
    ({'role': 'user', 'content': [{'type': 'video'}, {'type': 'text', 'text': 'What is {x}? Answer in {braces}.'}]},)
    """

    text: str  # follows images and videos; prompt_config.check_template says what may stand in it
    system: str | None = None  # None: no system message

    def messages(self, texts: Mapping[str, str], *, num_images: int = 0, num_videos: int) -> Messages:
        """A system message, if there is one, and a user message: the images first, the videos, then the text."""
        shown: list[dict[str, str]] = [{"type": "image"}] * num_images + [{"type": "video"}] * num_videos
        asked = {"role": "user", "content": [*shown, {"type": "text", "text": self.text.format_map(texts)}]}
        if self.system is None:
            return (asked,)
        return ({"role": "system", "content": [{"type": "text", "text": self.system.format()}]}, asked)


def texts_in(messages: Messages) -> list[str]:
    """Their texts, without images and videos."""
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]


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


def as_answer(text: str) -> str:
    """A reply to a question that asks for the bare answer: all of it, unless it has an answer block of its own.

    >>> as_answer("B"), as_answer("<think>x</think><answer>B</answer>")
    ('<think></think><answer>B</answer>', '<think>x</think><answer>B</answer>')
    """
    return completion("", text) if answer_start(text) is None else text
