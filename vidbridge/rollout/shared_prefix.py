"""Sampling with shared prefixes: each prompt is read once, then the completions of all are decoded together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch

from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import Ended, Progress, RolloutConfig
from vidbridge.rollout.decode_step import DecodeStep, prefill
from vidbridge.rollout.sampling import StopStrings, choose, uniforms_of
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

_WORTH_LEAVING = 0.75  # ended rows leave the batch once no more than this part of it need remain


@dataclass(frozen=True, kw_only=True)
class SharedPrefixConfig(RolloutConfig):
    def build(self, policy: Policy) -> SharedPrefixRollout:
        return SharedPrefixRollout(policy, max_rows=self.max_rows)


class SharedPrefixRollout:
    """The rollout that shares the learner's weights where they are whole, and a prompt among its completions.

    At most ``max_rows`` completions are decoded together, or one group where a group is larger. Completions that have
    ended leave, as far as the others still form a grid of prompts times siblings. A completion ends with
    EOS, or with the token that completes one of the stop strings. ``sampler_logprobs`` belong to the distribution that
    was drawn from: at the temperature, over the tokens that are not suppressed and that top-p and min-p leave. Without
    those two it is the one that the learner differentiates, in greedy mode too.
    """

    def __init__(self, policy: Policy, *, max_rows: int = 128):
        self.sync(policy)
        self.max_rows = max_rows
        self._stop: StopStrings | None = None  # the last ones asked for, with what is known of their tokens

    def sync(self, policy: Policy) -> None:
        """Sample from ``policy`` from now on. Under ZeRO-3 its weights are gathered; else the module is shared."""
        self.policy, self.module = policy, policy.whole()

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        indices = range(len(prompts)) if indices is None else indices
        chunk_size = max(1, self.max_rows // group_size)
        completions: list[tuple[Completion, ...]] = []
        for start in range(0, len(prompts), chunk_size):
            chunk = prompts[start : start + chunk_size]
            here = indices[start : start + chunk_size]
            limit = sampling.max_completion_tokens
            drawn = None if sampling.greedy else uniforms_of(seed, here, group_size, limit)

            def report(share: float) -> None:
                if progress is not None:
                    progress((start + share * len(chunk)) / len(prompts))

            def tell(nth: int, done: tuple[Completion, ...]) -> None:
                if ended is not None:
                    ended(here[nth], done)

            completions += self._decode(chunk, group_size, sampling, drawn, tell, report)
        return completions

    @torch.no_grad()
    def _decode(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        uniforms: torch.Tensor | None,  # [N, T] in [0, 1), None: greedy
        tell: Ended,  # by index in ``prompts``
        report: Progress,
    ) -> list[tuple[Completion, ...]]:
        module, processor, limit = self.module.eval(), self.policy.processor, sampling.max_completion_tokens
        stop = self._stop_strings(sampling.stop)
        cache, logits = prefill(module, prompts, group_size, pad_id=processor.pad_id)
        device, num_rows = logits.device, len(prompts) * group_size
        step = DecodeStep(module, cache)
        logits = logits.repeat_interleave(group_size, dim=0)
        first_positions = torch.tensor([len(p.input_ids) + p.rope_delta for p in prompts], device=device)
        first_positions = first_positions.repeat_interleave(group_size)  # [N]
        uniforms = None if uniforms is None else uniforms.to(device)
        token_ids = torch.full((num_rows, limit), processor.pad_id, device=device)
        logprobs = torch.zeros(num_rows, limit, device=device)
        lengths = torch.zeros(num_rows, dtype=torch.long, device=device)  # 0: not ended yet
        rows = torch.arange(num_rows, device=device).view(-1, group_size)  # [P, W], what stands where in the cache
        growing = rows.flatten()  # those that have not ended
        standing = list(range(len(prompts)))  # the prompts of ``rows``
        groups: dict[int, tuple[Completion, ...]] = {}

        def finish(prompt: int) -> None:
            siblings = slice(prompt * group_size, (prompt + 1) * group_size)
            groups[prompt] = self._read(token_ids[siblings], logprobs[siblings], lengths[siblings])
            tell(prompt, groups[prompt])

        for column in range(limit):
            here = rows.flatten()
            distribution = self._distribution(logits, sampling.temperature)
            token, logprob = choose(distribution, None if uniforms is None else uniforms[here, column], sampling)
            # a row that has ended goes on while its siblings do; nothing after its length is read
            token_ids[here, column] = token
            logprobs[here, column] = logprob
            report((column + 1) / limit)

            ends = self._ends(token_ids, growing, column, stop)
            if ends.any():  # else nothing is to be told, and nobody leaves
                lengths[growing[ends]] = column + 1
                growing = growing[~ends]
                open_rows = lengths[rows] == 0  # [P, W]
                num_open = open_rows.sum(dim=1).tolist()
                for prompt, count in zip(standing, num_open, strict=True):
                    if count == 0 and prompt not in groups:
                        finish(prompt)
                num_prompts, width = sum(map(bool, num_open)), max(num_open)
                if num_prompts == 0:
                    break
                if num_prompts * width <= _WORTH_LEAVING * rows.numel():
                    keep = open_rows.any(dim=1).nonzero().flatten()  # [P']
                    # [P', W']: the open ones first; where a prompt has fewer than the others, ended ones fill up
                    slots = open_rows[keep].int().argsort(dim=1, descending=True, stable=True)[:, :width]
                    cache.keep(keep, slots)
                    rows = rows[keep[:, None], slots]
                    standing = [prompt for prompt, count in zip(standing, num_open) if count]
            if column + 1 < limit:
                here = rows.flatten()
                logits = step(token_ids[here, column], first_positions[here] + column, column)
        for prompt in standing:
            if prompt not in groups:  # cut at the limit
                finish(prompt)
        report(1.0)
        return [groups[prompt] for prompt in range(len(prompts))]

    def _stop_strings(self, strings: tuple[str, ...]) -> StopStrings | None:
        if not strings:
            return None
        if self._stop is None or self._stop.strings != strings:
            self._stop = StopStrings(strings, self.policy.processor.decode)
        return self._stop

    def _distribution(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return the log-probabilities [N, V] at the temperature, -inf for what is never sampled."""
        scaled = logits.float() / temperature
        return scaled.index_fill_(1, self.policy.suppressed_ids, -torch.inf).log_softmax(dim=-1)

    def _ends(
        self, token_ids: torch.Tensor, rows: torch.Tensor, column: int, stop: StopStrings | None
    ) -> torch.Tensor:
        """Return which rows end at ``column``, by EOS or a stop string, [len(rows)] bool."""
        ends = token_ids[rows, column] == self.policy.processor.eos_id
        if stop is not None:
            first = max(column + 1 - stop.reach, 0)
            ends |= stop(token_ids[rows, first : column + 1])
        return ends

    def _read(self, token_ids: torch.Tensor, logprobs: torch.Tensor, lengths: torch.Tensor) -> tuple[Completion, ...]:
        completions = []
        for ids, values, length in zip(token_ids.tolist(), logprobs.tolist(), lengths.tolist()):
            finished = length > 0
            ids, values = (ids[:length], values[:length]) if finished else (ids, values)
            completions.append(
                Completion(
                    text=self.policy.processor.decode(ids),
                    token_ids=tuple(ids),
                    sampler_logprobs=tuple(values),
                    finished=finished,
                )
            )
        return tuple(completions)
