"""A GRPO step on real parts: clips from mp4 files, a small random model, rewards that are known beforehand."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.conftest import SHAPES_FRAMES
from vidbridge.algo.advantages import SCALES
from vidbridge.algo.mismatch import CORRECTIONS
from vidbridge.algo.objectives import OBJECTIVES
from vidbridge.config.choices import Schedule
from vidbridge.config.schema import GrpoConfig, OptimConfig
from vidbridge.data.loader import Loader
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics.gradients import Diagnostics
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.policy.processor import Processor
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.scripted import ScriptedRollout
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.sampler import Sampler
from vidbridge.step import GrpoStep
from vidbridge.types import Outputs, SamplingParams

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
    rollout=SharedPrefixRollout,
    ahead=False,
    last=None,
    **algo,
):
    module = load_model(str(folder), device=device)
    processor = Processor.from_folder(folder, SHAPES_FRAMES, max_prompt_tokens=1024)
    config = GrpoConfig(**{"group_size": 4, **algo})
    reference = frozen_copy(module) if config.kl_beta > 0 else None
    policy = Policy(
        module,
        processor,
        engine(module, OptimConfig(lr=1e-3, schedule=Schedule.constant, max_grad_norm=1e9), total_updates=10),
        max_packed_tokens=max_packed_tokens,
        reference=reference,
    )
    return GrpoStep(
        sampler=Sampler(
            mixture=Mixture(tasks, {"caption": 1, "mix_vid_qa": 1}, prompts_per_step=prompts_per_step, seed=0),
            loader=Loader(tasks, processor, bad),
            rollout=rollout(policy),
            ahead=ahead,
            last=last,
            reward=GatedSum(gates={}, terms={"it": reward()}, weights={name: {"it": 1.0} for name in tasks}),
            sampling=SamplingParams(max_completion_tokens=MAX_TOKENS),
            policy=policy,
            group_size=config.group_size,
        ),
        policy=policy,
        algo=config,
        objective=OBJECTIVES[config.objective],
        advantage_scale=SCALES[config.advantage_scale],
        correction=CORRECTIONS[config.correction],
        diagnostics=Diagnostics(module=module, processor=processor, every=every),
    )


def weights_of(step):
    return copy.deepcopy(step.policy.module.state_dict())


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


class Unigrams:
    """An engine whose model is a row of scores, one for each token, whatever stands before it: plain SGD at rate 1."""

    def __init__(self, vocab_size):
        self.scores = torch.zeros(vocab_size, requires_grad=True)
        self.updates = 0

    def forward(self, batch, temperature, suppressed_ids):
        logprobs = self.scores.log_softmax(dim=0)
        entropy = -(logprobs.exp() * logprobs).sum().detach()
        of_tokens = logprobs[batch.completion_ids] * batch.sampled_mask
        return Outputs(of_tokens, entropy.expand_as(of_tokens), torch.tensor(0.0), torch.tensor(0.0))

    def backward(self, loss):
        loss.backward()

    def update(self):
        self.updates += 1
        moved, self.scores.grad = self.scores.grad, None
        with torch.no_grad():
            self.scores -= moved
        return {"policy/grad_norm": moved.norm().item()}


def scripted_step(tasks, processor, texts, *, reward, prompts_per_step=2, group_size=2, limit=8, **algo):
    """A step without a model: what is written is known, and what is learnt can be told by hand."""
    module = nn.Module()
    module.lm_head, module.device = nn.Linear(1, 1), torch.device("cpu")
    policy = Policy(module, processor, Unigrams(len(processor.tokenizer)))
    return GrpoStep(
        sampler=Sampler(
            mixture=Mixture(tasks, dict.fromkeys(tasks, 1), prompts_per_step=prompts_per_step, seed=0),
            loader=Loader(tasks, processor),
            rollout=ScriptedRollout(processor, texts),
            reward=GatedSum(gates={}, terms={"it": reward}, weights={name: {"it": 1.0} for name in tasks}),
            sampling=SamplingParams(max_completion_tokens=limit),
            policy=policy,
            group_size=group_size,
        ),
        policy=policy,
        algo=GrpoConfig(group_size=group_size, advantage_scale="none", **algo),
        objective=OBJECTIVES["clipped"],
        advantage_scale=SCALES["none"],
        correction=CORRECTIONS["none"],
        diagnostics=Diagnostics(module=module, processor=processor, every=0),
    )
