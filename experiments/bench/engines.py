"""Our own rollout and vLLM's, side by side in one process: speed, memory, and the distance to the learner.

    make test-vllm && .venv-vllm/bin/python -m experiments.bench.engines [--backbone qwen3_vl] [--json FILE]

A random model of 12 M parameters samples 8 completions of exactly 64 tokens for 1, 8 and 32 prompts with 512 video
tokens each. A round is what it is in a step: the engine gets the weights, and no cache knows the prompts. Seconds are
medians, in turns. ``held_mb`` is what an engine takes in memory once it is there (vLLM: its code, the weights again,
keys and values), ``peak_mb`` what a round takes beyond that. The gap is the largest distance to the learner's log-
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Sequence

import torch

from experiments.bench.families import SMALL
from experiments.bench.harness import (
    add_backbone,
    announcing,
    arguments,
    finish,
    held_mb,
    medians,
    number,
    peak_extra_mb,
    show,
)
from experiments.bench.shape import FRAMES, QUESTION, engine_for, never_end, random_folder, random_prompt, small
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.base import RolloutEngine
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.rollout.vllm import VllmRollout
from vidbridge.types import EncodedPrompt, Group, Prompt, Sample, SamplingParams

GROUP_SIZE, MAX_ROWS = 8, 256


@dataclass(frozen=True)
class Round:
    """One engine and so many prompts, again and again."""

    policy: Policy
    engine: RolloutEngine
    prompts: Sequence[tuple[Prompt, EncodedPrompt]]
    sampling: SamplingParams

    def sync(self) -> None:
        self.engine.sync(self.policy)

    def __call__(self) -> list[Group]:
        self.sync()
        encoded = [each for _, each in self.prompts]
        done = self.engine.generate(encoded, GROUP_SIZE, self.sampling, seed=0)
        assert {len(row.token_ids) for group in done for row in group} == {self.sampling.max_completion_tokens}
        sample = Sample(uid="random", task="random", question=QUESTION, answer="", videos=())
        return [
            Group(sample=sample, prompt=prompt, encoded=encoded, completions=completions)
            for (prompt, encoded), completions in zip(self.prompts, done, strict=True)
        ]

    def gap(self, groups: Sequence[Group]) -> float:
        """Of the first prompts, as many as the learner takes at once."""
        groups = groups[:8]
        ones = torch.ones(len(groups) * GROUP_SIZE, self.sampling.max_completion_tokens)
        batch = self.policy.collate(groups, ones[:, 0], ones)
        assert batch.sampler_logprobs is not None
        with torch.no_grad():
            apart = self.policy.logprobs(batch)[0] - batch.sampler_logprobs
        return float(apart.abs()[batch.sampled_mask].max())


def measure(rounds: dict[str, Round], repeats: int) -> dict[str, dict[str, Any]]:
    """What the rows of an equal number of prompts hold, by engine."""
    seconds = medians(rounds, repeats)
    sync_s = medians({name: each.sync for name, each in rounds.items()}, repeats)
    rows = {}
    with announcing() as announce:
        for name, each in rounds.items():
            announce(f"memory and gap: {name}")
            peak_mb, groups = peak_extra_mb(each)
            tokens = len(each.prompts) * GROUP_SIZE * each.sampling.max_completion_tokens
            rows[name] = {
                "tokens_per_s": tokens / seconds[name],
                "seconds": seconds[name],
                "sync_s": sync_s[name],
                "peak_mb": peak_mb,
                "logprob_gap": each.gap(groups),
            }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("our rollout beside vLLM's", repeats=3)
    add_backbone(parser)
    args = parser.parse_args(argv)
    numbers, num_tokens, video_tokens = ((1, 2), 4, 32) if args.quick else ((1, 8, 32), 64, 512)
    with random_folder(small(SMALL, args.backbone)) as folder:
        module = load_model(folder, device="cpu")
        policy = Policy(module, Processor.from_folder(folder, FRAMES), engine_for(module))
        never_end(policy)
        make: dict[str, Callable[[], RolloutEngine]] = {
            "ours": partial(SharedPrefixRollout, policy, max_rows=MAX_ROWS),
            "vllm": partial(
                VllmRollout, policy, max_rows=MAX_ROWS, max_completion_tokens=num_tokens, cache_bytes=1e9
            ),
        }
        engines, held = {}, {}
        for name, made in make.items():
            before = held_mb()
            engines[name] = made()
            held[name] = held_mb() - before
    prompts = [random_prompt(video_tokens, seed=seed) for seed in range(max(numbers))]
    pairs = [(prompt, policy.processor.encode(prompt)) for prompt in prompts]
    sampling = SamplingParams(max_completion_tokens=num_tokens)
    rows = []
    for num_prompts in numbers:
        rounds = {name: Round(policy, engine, pairs[:num_prompts], sampling) for name, engine in engines.items()}
        for name, row in measure(rounds, args.repeats).items():
            size = {"engine": name, "prompts": num_prompts, "group_size": GROUP_SIZE}
            rows.append({**size, **row, "held_mb": held[name]})
        finish({"backbone": args.backbone, "rows": rows}, args)  # after each: the last takes minutes
    show(
        f"{args.backbone}: {GROUP_SIZE} completions of {num_tokens} tokens for each prompt, the weights copied before",
        ("engine", "prompts", "tokens / s", "sync, s", "MB held", "MB more at the peak", "largest gap"),
        [
            (
                row["engine"],
                str(row["prompts"]),
                f"{row['tokens_per_s']:.0f}",
                f"{row['sync_s']:.2f}",
                f"{row['held_mb']:.0f}",
                number(row["peak_mb"], ".0f"),
                f"{row['logprob_gap']:.1e}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
