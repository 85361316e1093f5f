"""Chats as tokens, in which control tokens stand where the chat template writes them and nowhere else.

A text that spells <|im_end|> would end its turn, and go on in another one's name: tokenizers look for such words
everywhere. Here it is read as the letters it is made of.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Callable, Mapping, Sequence

from tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]

_PRIVATE = [*map(chr, range(0xE000, 0xF8FF))]  # characters that mean nothing


class ChatTokens:
    """Tokenises the chats of one tokenizer (of the transformers library, with a chat template)."""

    def __init__(self, tokenizer: Any, *more: int) -> None:
        """``more``: ids that count as control tokens although the tokenizer does not say so, of placeholders."""
        self.tokenizer = tokenizer
        known = tokenizer.added_tokens_decoder
        special = {id for id, token in known.items() if token.special} | set(tokenizer.all_special_ids) | {*more}
        self.control_ids = frozenset(special - {tokenizer.unk_token_id})  # any unknown word is <unk>

    def ids(self, messages: Messages, opening: str = "") -> list[int]:
        """Token ids of a chat, ready for the assistant's turn, which ``opening`` (ours) begins.

        They are the library's, unless a text spells a control token. ValueError for a tokenizer that makes control
        tokens of plain text.
        """
        rendered = self._rendered(messages) + opening
        ids = self._encoded(rendered)
        of_template = self._control(self._encoded(self._rendered(_mapped(messages, lambda text: text and "x"))))
        if self._control(ids) == of_template:
            return ids
        mark = next(each for each in _PRIVATE if each not in rendered)

        def broken(text: str) -> str:
            return self._spelt.sub(lambda found: mark.join(found[0]), text)

        pieces = self._spelt.split(self._rendered(_mapped(messages, broken)) + opening)  # text, control token, text ..
        ids = []
        for nth, piece in enumerate(pieces):
            ids += self._encoded(piece) if nth % 2 else self._plain(piece.replace(mark, ""))
        self._check(ids, of_template, rendered)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text alone, none of them a control token."""
        ids = self._encoded(text)
        if self._control(ids):
            ids = self._plain(text)
            self._check(ids, [], text)
        return ids

    def _check(self, ids: Sequence[int], expected: Sequence[int], text: str) -> None:
        if self._control(ids) != expected:
            tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids & {*ids}))
            raise ValueError(f"this tokenizer makes control tokens of plain text, one of {tokens}, in {text[:200]!r}")

    def _control(self, ids: Sequence[int]) -> list[int]:
        return [id for id in ids if id in self.control_ids]

    def _rendered(self, messages: Messages) -> str:
        text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._blind.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids))
        return re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))})")

    @cached_property
    def _blind(self) -> Tokenizer:
        """A copy that knows no special tokens: to turn that on and off in the other one is not safe in threads."""
        copy = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.encode_special_tokens = True
        copy.no_truncation()
        copy.no_padding()
        return copy


def _mapped(messages: Messages, change: Callable[[str], str]) -> list[Mapping[str, Any]]:
    """The messages with other texts."""

    def part(each: Any) -> Any:
        return {**each, "text": change(each["text"])} if isinstance(each, Mapping) and "text" in each else each

    def content(found: Any) -> Any:
        return change(found) if isinstance(found, str) else [part(each) for each in found]

    return [{**message, "content": content(message["content"])} for message in messages]
