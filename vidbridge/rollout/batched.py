"""Sampling all siblings of many prompts together: one prefill for each prompt, then one decode loop with a cache."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from vidbridge.policy.collate import pad_prompts
from vidbridge.policy.qwen_vl import QwenVLPolicy, embed_prompts
from vidbridge.rollout.base import Progress
from vidbridge.types import Completion, EncodedPrompt


class BatchedRollout:
    """The rollout that shares the learner's weights.

    At most ``max_rows`` completions are decoded together, or one group where a group is larger.
    ``sampler_logprobs`` belong to the distribution at ``temperature`` over the tokens that are not suppressed, in
    greedy mode too.
    """

    def __init__(
        self, policy: QwenVLPolicy, *, max_completion_tokens: int, temperature: float = 1.0, max_rows: int = 128
    ):
        if temperature <= 0 or max_completion_tokens < 1 or max_rows < 1:
            raise ValueError(
                f"temperature must be > 0, max_completion_tokens and max_rows >= 1, "
                f"got {temperature}, {max_completion_tokens} and {max_rows}"
            )
        self.policy = policy
        self.max_completion_tokens = max_completion_tokens
        self.temperature = temperature
        self.max_rows = max_rows

    def sync(self, policy: QwenVLPolicy) -> None:
        """Nothing is copied: the policy's module is sampled as it is at each call."""
        self.policy = policy

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        *,
        seed: int,
        first: int = 0,
        greedy: bool = False,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        chunk_size = max(1, self.max_rows // group_size)
        completions: list[Completion] = []
        for start in range(0, len(prompts), chunk_size):
            chunk = prompts[start : start + chunk_size]
            places = range(first + start, first + start + len(chunk))
            drawn = None if greedy else uniforms_of(seed, places, group_size, self.max_completion_tokens)

            def report(share: float) -> None:
                if progress is not None:
                    progress((start + share * len(chunk)) / len(prompts))

            completions += self._decode(chunk, group_size, drawn, report)
        return [tuple(completions[i : i + group_size]) for i in range(0, len(completions), group_size)]

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[EncodedPrompt], group_size: int, uniforms: torch.Tensor | None, report: Progress
    ) -> list[Completion]:
        """Completions of ``prompts``, siblings next to each other. ``uniforms`` [N, T] in [0, 1), None: greedy."""
        module, processor = self.policy.module.eval(), self.policy.processor
        batch = pad_prompts(prompts, processor.pad_id, module.device)
        num_columns = batch["prompt_ids"].shape[1]
        # What is added to the logits: -inf for tokens that are never produced.
        bias = torch.zeros(module.config.text_config.vocab_size, device=module.device)
        bias[self.policy.suppressed_ids] = float("-inf")
        if uniforms is not None:
            uniforms = uniforms.to(module.device)

        cache = DynamicCache(config=module.config)
        logits = module(
            inputs_embeds=embed_prompts(
                module, batch["prompt_ids"], batch["pixel_values"], batch["video_grid_thw"]
            ),
            attention_mask=batch["prompt_mask"],
            position_ids=batch["prompt_positions"],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        cache.batch_repeat_interleave(group_size)
        logits = logits[:, -1].repeat_interleave(group_size, dim=0)
        first_position = batch["prompt_mask"].sum(dim=1) + batch["rope_deltas"]
        positions = first_position.repeat_interleave(group_size).view(1, -1, 1).expand(3, -1, 1)
        mask = None  # without padding there is nothing to hide, and attention runs faster without a mask
        if not bool(batch["prompt_mask"].all()):
            prompt_mask = batch["prompt_mask"].repeat_interleave(group_size, dim=0)
            mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(logits), self.max_completion_tokens)], dim=1)

        finished = torch.zeros(len(logits), dtype=torch.bool, device=module.device)
        tokens, logprobs = [], []
        for step in range(self.max_completion_tokens):
            distribution = torch.log_softmax((logits.float() + bias) / self.temperature, dim=-1)  # [N, V]
            token = distribution.argmax(dim=-1) if uniforms is None else draw(distribution, uniforms[:, step])
            logprobs.append(distribution.gather(1, token[:, None]).squeeze(1))
            token = token.masked_fill(finished, processor.pad_id)
            tokens.append(token)
            finished = finished | (token == processor.eos_id)
            report((step + 1) / self.max_completion_tokens)
            if step + 1 == self.max_completion_tokens or bool(finished.all()):
                break
            logits = module(
                input_ids=token[:, None],
                attention_mask=None if mask is None else mask[:, : num_columns + step + 1],
                position_ids=positions + step,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        report(1.0)
        return self._read(torch.stack(tokens, dim=1).tolist(), torch.stack(logprobs, dim=1).tolist())

    def _read(self, tokens: list[list[int]], logprobs: list[list[float]]) -> list[Completion]:
        """Rows of equal length -> completions cut after their first EOS."""
        eos_id = self.policy.processor.eos_id
        completions = []
        for ids, values in zip(tokens, logprobs):
            finished = eos_id in ids
            length = ids.index(eos_id) + 1 if finished else len(ids)
            completions.append(
                Completion(
                    text=self.policy.processor.decode(ids[:length]),
                    token_ids=tuple(ids[:length]),
                    sampler_logprobs=tuple(values[:length]),
                    finished=finished,
                )
            )
        return completions


def uniforms_of(seed: int, places: Sequence[int], group_size: int, num_tokens: int) -> torch.Tensor:
    """Numbers [N, T] in [0, 1), ``group_size`` rows for each prompt; those of prompt i come from (seed, i) alone."""
    drawn = [np.random.default_rng([seed, place]).random((group_size, num_tokens)) for place in places]
    return torch.from_numpy(np.concatenate(drawn))


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token id [N] for each row of log-probabilities [N, V], from uniform numbers [N] in [0, 1).

    The smallest id whose cumulative probability exceeds the number; in 64 bits, so that rounding over a large
    vocabulary cannot reach a token of probability zero.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True).squeeze(1)
