"""A Hugging Face causal language model in this process, for one machine: no server, and no speed to speak of."""

from __future__ import annotations

import json
import math
import time
from typing import Any, Iterator, Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from vidbridge.config.checks import require_known
from vidbridge.config.choices import Dtype
from vidbridge.errors import ConfigError
from vidbridge.judges.base import JudgeUnavailable, Reply
from vidbridge.judges.chat_prompt import ChatPrompt
from vidbridge.judges.llm_judge import Said
from vidbridge.text.chat_tokens import ChatTokens

_END = "}"  # of every reply: none of them has an object inside


class LocalChat:
    """Greedy replies, ``batch_size`` prompts at a time, the shortest first.

    There is no grammar to hold the model to the form; but its reply is begun for it, so that it need not find the form
    by itself, and ends with the first closing brace.
    """

    waits = False
    free = ("device", "batch_size")  # keys that may differ when a run is resumed
    deadline_s = math.inf
    last_failure = notes = ""

    def __init__(
        self,
        *,
        path: str,  # a Hugging Face id or a folder in that format, with a chat template
        dtype: str = "bfloat16",
        device: str = "auto",
        batch_size: int = 8,
        max_reply_tokens: int = 512,
    ) -> None:
        require_known("dtype", dtype, [each.value for each in Dtype], "judge.answers.dtype")
        if batch_size < 1 or max_reply_tokens < 1:
            raise ConfigError(f"judge: batch_size={batch_size}, max_reply_tokens={max_reply_tokens} must be positive")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.path, self.dtype, self.batch_size, self.max_reply_tokens = path, dtype, batch_size, max_reply_tokens
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
            module: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise ConfigError(f"judge: cannot load a language model from {path}: {error}") from error
        if not self._tokenizer.chat_template:
            raise ConfigError(f"judge: {path} has no chat template; a judge needs an instruct model")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._chat_tokens = ChatTokens(self._tokenizer)  # a completion that spells <|im_end|> does not end our question
        self._module = module.to(device).eval()

    @property
    def identity(self) -> str:
        return json.dumps([self.path, self.dtype, self.max_reply_tokens])

    @property
    def where(self) -> str:
        return f"{self.path} in this process"

    def chat(self, prompts: Sequence[ChatPrompt]) -> list[Said]:
        order = sorted(range(len(prompts)), key=lambda index: prompts[index].num_chars)
        said = dict(zip(order, self._in_batches([prompts[index] for index in order])))
        return [said[index] for index in range(len(prompts))]

    def _in_batches(self, prompts: Sequence[ChatPrompt]) -> Iterator[Said]:
        for first in range(0, len(prompts), self.batch_size):
            batch = prompts[first : first + self.batch_size]
            started = time.monotonic()
            replies = self._replies(batch)
            seconds = time.monotonic() - started
            yield from (Said(reply=reply, seconds=seconds) for reply in replies)

    @torch.inference_mode()
    def _replies(self, prompts: Sequence[ChatPrompt]) -> list[Reply]:
        ids = [self._chat_tokens.ids(prompt.messages, prompt.opening) for prompt in prompts]
        inputs = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding=True)
        inputs = {name: inputs[name].to(self._module.device) for name in ("input_ids", "attention_mask")}
        rows = self._module.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.max_reply_tokens,
            stopping_criteria=StoppingCriteriaList([_Ends(self._tokenizer)]),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        told = self._tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_ended(prompt.opening, text) for prompt, text in zip(prompts, told, strict=True)]


class _Ends(StoppingCriteria):
    """A row has ended with the token that holds the closing brace."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **unused: Any) -> torch.Tensor:
        last = self.tokenizer.batch_decode(input_ids[:, -1:])
        return torch.tensor([_END in text for text in last], device=input_ids.device)


def _ended(opening: str, text: str) -> Reply:
    told, end, _ = text.partition(_END)
    return opening + told + end if end else JudgeUnavailable(f"no end in the reply {opening + told[:60]!r}")
