"""A GRPO step on real parts: clips from mp4 files, a small random model, rewards that are known beforehand."""

from __future__ import annotations

import copy

import torch

from tests.conftest import SHAPES_FRAMES
from vidbridge.algo.advantages import SCALES
from vidbridge.algo.objectives import OBJECTIVES
from vidbridge.config.schema import GrpoConfig
from vidbridge.data.loader import Loader
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics.gradients import Diagnostics
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.policy.processor import Processor
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.step import GrpoStep
from vidbridge.types import SamplingParams

MAX_TOKENS = 6


class SumOfIds:
    """Any number that differs between siblings."""

    maximum = 1.0

    def __call__(self, sample, completions):
        return [sum(completion.token_ids) % 7 / 7 for completion in completions]


class Same:
    maximum = 1.0

    def __call__(self, sample, completions):
        return [0.7] * len(completions)


class SameForHalf:
    """Tells the siblings of every other question apart, by its wording."""

    maximum = 1.0

    def __call__(self, sample, completions):
        same = sum(map(ord, sample.uid)) % 2 == 0
        return [0.5 if same else sum(done.token_ids) % 7 / 7 for done in completions]


def make_step(
    tasks,
    folder,
    *,
    reward=SumOfIds,
    prompts_per_step=3,
    max_packed_tokens=400,
    engine=LocalEngine,
    bad=None,
    every=0,
    device="cpu",
    **algo,
):
    module = load_model(str(folder), device=device)
    processor = Processor.from_folder(folder, SHAPES_FRAMES, max_prompt_tokens=1024)
    config = GrpoConfig(**{"group_size": 4, **algo})
    reference = frozen_copy(module) if config.kl_beta > 0 else None
    policy = Policy(
        module,
        processor,
        engine(module, lr=1e-3, total_updates=10, schedule="constant", max_grad_norm=1e9),
        max_packed_tokens=max_packed_tokens,
        reference=reference,
    )
    return GrpoStep(
        mixture=Mixture(tasks, {"caption": 1, "mix_vid_qa": 1}, prompts_per_step=prompts_per_step, seed=0),
        loader=Loader(tasks, processor, bad),
        rollout=SharedPrefixRollout(policy),
        reward=GatedSum(gates={}, terms={"it": reward()}, weights={name: {"it": 1.0} for name in tasks}),
        policy=policy,
        algo=config,
        objective=OBJECTIVES[config.objective],
        advantage_scale=SCALES[config.advantage_scale],
        sampling=SamplingParams(max_completion_tokens=MAX_TOKENS),
        diagnostics=Diagnostics(module=module, processor=processor, every=every),
    )


def weights_of(step):
    return copy.deepcopy(step.policy.module.state_dict())


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}
