"""A whole GRPO step: ours, the structure of the peers, and TRL's trainer where trl is installed.

    python -m experiments.bench.step [--json FILE]

All do the same: prompts of one random video each, G completions of exactly T tokens, a reward of the token ids, one
update by AdamW. The peers' structure is that of the paper's trainer: a `generate` for every completion, a forward pass
of the reference although its weight is 0, and rows that repeat prompt and video. TRL sees the frames as images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Callable, Sequence

import torch
from transformers import PreTrainedModel

from experiments.bench import peers
from experiments.bench.families import SMALL, TINY
from experiments.bench.harness import CONSOLE, arguments, finish, medians, show_seconds
from experiments.bench.rollout import sampling_options
from experiments.bench.shape import QUESTION, Sides, engine_for, load_sides, never_end, random_prompt
from vidbridge.algo.advantages import group_advantages, group_std, rewards_of
from vidbridge.algo.mismatch import none
from vidbridge.algo.objectives import clipped, grpo_loss
from vidbridge.algo.token_weights import LossNorm, token_weights
from vidbridge.config.schema import GrpoConfig
from vidbridge.data.loader import Loader
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics.gradients import Diagnostics
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.plain import repeated_logprobs
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import score_groups
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.sampler import Sampler
from vidbridge.step import GrpoStep
from vidbridge.types import Completion, Group, Prompt, Sample, SamplingParams

TASK = "random"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    num_prompts: int
    group_size: int
    completion_tokens: int
    video_tokens: int


FULL = Sizes(num_prompts=2, group_size=8, completion_tokens=96, video_tokens=512)
QUICK = Sizes(num_prompts=2, group_size=2, completion_tokens=4, video_tokens=32)


@dataclass(frozen=True)
class RandomVideos:
    """A task whose videos are noise: what a step asks of a task, and no more."""

    sizes: Sizes
    read = None

    def __len__(self) -> int:
        return self.sizes.num_prompts

    def sample(self, index: int) -> Sample:
        row = index % len(self)
        return Sample(uid=f"{TASK}/{row}", task=TASK, question=QUESTION, answer="", videos=(), meta={"seed": row})

    def prompt(self, sample: Sample) -> Prompt:
        return random_prompt(self.sizes.video_tokens, seed=sample.meta["seed"])


class SumOfIds:
    """Any number that differs between siblings."""

    maximum = 1.0

    def __call__(self, sample: Sample, completions: Sequence[Completion]) -> list[float]:
        return [score(done.token_ids) for done in completions]


def score(token_ids: Sequence[int]) -> float:
    return sum(token_ids) % 1009 / 1009


REWARD = GatedSum(gates={}, terms={"sum": SumOfIds()}, weights={TASK: {"sum": 1.0}})


def grpo_step(policy: Policy, rollout: SharedPrefixRollout, sizes: Sizes) -> GrpoStep:
    """vidbridge's own, as train.py runs it, on the same prompts every time."""
    tasks = {TASK: RandomVideos(sizes)}
    return GrpoStep(
        sampler=Sampler(
            mixture=Mixture(tasks, {TASK: 1}, prompts_per_step=sizes.num_prompts, seed=0),
            loader=Loader(tasks, policy.processor),
            rollout=rollout,
            reward=REWARD,
            sampling=SamplingParams(max_completion_tokens=sizes.completion_tokens),
            last=0,  # nothing is loaded ahead: that would be time taken from the others
            policy=policy,
            group_size=sizes.group_size,
        ),
        policy=policy,
        algo=GrpoConfig(group_size=sizes.group_size),
        objective=clipped,
        advantage_scale=group_std,
        correction=none,
        diagnostics=Diagnostics(module=policy.module, processor=policy.processor, every=0),
    )


def our_step(sides: Sides, sizes: Sizes) -> Callable[[], None]:
    rollout = SharedPrefixRollout(sides.policy)
    step = grpo_step(sides.policy, rollout, sizes)

    def run() -> None:
        metrics = step(0).metrics
        assert metrics["rollout/completion_tokens"] == sizes.completion_tokens
        assert metrics["rollout/degenerate_frac"] == 0, "a group that teaches nothing would skip the learner"

    return run


@dataclass(frozen=True)
class PeerStep:
    """The same step with the peers' structure, prompt after prompt."""

    sides: Sides
    sizes: Sizes
    suppressed: list[int]
    engine: LocalEngine
    reference: PreTrainedModel

    def __call__(self) -> None:
        groups = score_groups([self._sampled(index) for index in range(self.sizes.num_prompts)], REWARD)
        advantages = group_advantages(rewards_of(groups), group_std)
        for group, of_group in zip(groups, advantages):
            self._backward(group, of_group.float())
        self.engine.update()

    def _sampled(self, index: int) -> Group:
        plain, processor = self.sides.plain.eval(), self.sides.policy.processor
        task = RandomVideos(self.sizes)
        sample = task.sample(index)
        prompt = task.prompt(sample)
        encoded = processor.encode(prompt)
        options = sampling_options(self.suppressed, self.sizes.completion_tokens)
        rows = [
            peers.generate(plain, encoded, num_return_sequences=1, **options)[0].tolist()
            for _ in range(self.sizes.group_size)
        ]
        completions = [Completion(text=processor.decode(ids), token_ids=tuple(ids), finished=False) for ids in rows]
        return Group(sample=sample, prompt=prompt, encoded=encoded, completions=tuple(completions))

    def _backward(self, group: Group, advantages: torch.Tensor) -> None:
        """advantages [G]"""
        mask = loss_mask([group])
        with torch.no_grad():
            ref_logprobs = self._logprobs(self.reference, group)
        logprobs = self._logprobs(self.sides.plain.train(), group)
        out = grpo_loss(
            logprobs,
            old_logprobs=None,
            ref_logprobs=ref_logprobs,
            advantages=advantages,
            loss_mask=mask,
            token_weights=token_weights(mask, LossNorm.sequence, mask.shape[1]) / self.sizes.num_prompts,
            clip_low=0.2,
            clip_high=0.2,
            kl_beta=0.0,
        )
        self.engine.backward(out.loss)

    def _logprobs(self, module: PreTrainedModel, group: Group) -> torch.Tensor:
        policy = self.sides.policy
        return repeated_logprobs(
            module, [group], temperature=policy.temperature, suppressed_ids=policy.suppressed_ids
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments("a whole step: ours, the peers' structure, TRL", repeats=3).parse_args(argv)
    sizes = QUICK if args.quick else FULL
    sides = load_sides(TINY if args.quick else SMALL)
    suppressed = never_end(sides.policy)
    steps = {
        "ours": our_step(sides, sizes),
        "peers' structure": PeerStep(sides, sizes, suppressed, engine_for(sides.plain), frozen_copy(sides.plain)),
    }
    if find_spec("trl") is None:
        CONSOLE.print("trl is not installed here: its step is left out")
    else:
        from experiments.bench.trl_step import trl_step

        tokenizer = sides.policy.processor.tokenizer
        steps["TRL"] = trl_step(sides.plain, tokenizer, **asdict(sizes), suppressed=suppressed, score=score)
    seconds = medians(steps, args.repeats)
    show_seconds(
        f"one step: {sizes.num_prompts} prompts x {sizes.group_size} completions of {sizes.completion_tokens} tokens, "
        f"{sizes.video_tokens} video tokens",
        seconds,
    )
    trl_s = seconds.get("TRL")
    figures = {
        "ours_s": seconds["ours"],
        "peer_structure_s": seconds["peers' structure"],
        "trl_s": trl_s,
        "vs_peer_structure": seconds["peers' structure"] / seconds["ours"],
        "vs_trl": None if trl_s is None else trl_s / seconds["ours"],
    }
    finish(figures, args)


if __name__ == "__main__":
    main()
