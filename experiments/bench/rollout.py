"""Sampling one group: ours, one `generate` with num_return_sequences, and a `generate` for every completion.

    python -m experiments.bench.rollout [--backbone qwen3_vl] [--json FILE]

The last is how the paper's code samples. All draw from the whole distribution at temperature 1 with a cache, and none
may end early: every completion has the same number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Sequence

from experiments.bench import peers
from experiments.bench.families import SMALL, TINY
from experiments.bench.harness import add_backbone, arguments, finish, medians, show_seconds
from experiments.bench.shape import Sides, encode, load_sides, never_end
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import EncodedPrompt, SamplingParams


@dataclass(frozen=True)
class Sampling:
    """Three ways to ``group_size`` completions of each prompt."""

    sides: Sides
    suppressed: list[int]
    group_size: int
    num_tokens: int

    def ours(self, prompts: Sequence[EncodedPrompt]) -> None:
        rollout = SharedPrefixRollout(self.sides.policy)
        sampling = SamplingParams(max_completion_tokens=self.num_tokens)
        for completions in rollout.generate(prompts, self.group_size, sampling, seed=0):
            assert [len(done.token_ids) for done in completions] == [self.num_tokens] * self.group_size

    def num_return_sequences(self, prompts: Sequence[EncodedPrompt]) -> None:
        for prompt in prompts:
            self._generate(prompt, self.group_size)

    def sequential(self, prompts: Sequence[EncodedPrompt]) -> None:
        for prompt in prompts:
            for _ in range(self.group_size):
                self._generate(prompt, 1)

    def _generate(self, prompt: EncodedPrompt, num_return_sequences: int) -> None:
        ids = peers.generate(
            self.sides.plain,
            prompt,
            num_return_sequences=num_return_sequences,
            **sampling_options(self.suppressed, self.num_tokens),
        )
        assert ids.shape == (num_return_sequences, self.num_tokens)


def sampling_options(suppressed: list[int], num_tokens: int) -> dict[str, object]:
    """For ``generate``: the distribution that our rollout samples, and completions of ``num_tokens``."""
    return {"do_sample": True, "top_k": 0, "suppress_tokens": suppressed, "max_new_tokens": num_tokens}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("the rollout: ours against generate", repeats=5)
    add_backbone(parser)
    args = parser.parse_args(argv)
    group_size, num_tokens, video_tokens = (2, 4, 32) if args.quick else (8, 64, 512)
    sides = load_sides(TINY if args.quick else SMALL, args.backbone)
    sampling = Sampling(sides, never_end(sides.policy), group_size, num_tokens)
    sides.plain.eval()
    prompts = [encode(sides.policy.processor, video_tokens, seed=seed) for seed in range(4)]
    ways = (sampling.ours, sampling.num_return_sequences, sampling.sequential)
    seconds = medians({way.__name__: partial(way, prompts[:1]) for way in ways}, args.repeats)
    # several prompts: ours grow together, those of generate one group after the other
    many = medians({way.__name__: partial(way, prompts) for way in ways[:2]}, args.repeats)
    what = f"{args.backbone}: {group_size} completions of {num_tokens} tokens"
    show_seconds(f"{what} after {len(prompts[0].input_ids)}, {video_tokens} of them video", seconds)
    show_seconds(f"{what} for each of {len(prompts)} prompts", many)
    figures = {
        "backbone": args.backbone,
        "ours_s": seconds["ours"],
        "num_return_sequences_s": seconds["num_return_sequences"],
        "sequential_s": seconds["sequential"],
        "vs_num_return_sequences": seconds["num_return_sequences"] / seconds["ours"],
        "vs_sequential": seconds["sequential"] / seconds["ours"],
        "several_prompts": {
            "num_prompts": len(prompts),
            "ours_s": many["ours"],
            "num_return_sequences_s": many["num_return_sequences"],
            "vs_num_return_sequences": many["num_return_sequences"] / many["ours"],
        },
    }
    finish(figures, args)


if __name__ == "__main__":
    main()
