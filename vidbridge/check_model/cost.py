"""One training step on this machine: how long it takes, and how much memory beside what plan=true predicts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch

from vidbridge.check_model.base import Item, Row
from vidbridge.check_model.peak import pages_of_their_own, peak_extra_bytes, seconds_of
from vidbridge.config.schema import OptimConfig
from vidbridge.memory_plan.memory import Groups, Memory
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import RolloutEngine
from vidbridge.types import Completion, Group, SamplingParams

NUM_ROWS = 2  # packed ones: the second finds the gradients of the first
LEAST = 0.5  # a prediction of twice what is measured turns runs away that would fit


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """How much of a configured step is tried."""

    prompts_per_step: int
    group_size: int
    completion_tokens: int
    max_packed_tokens: int


def check_step(
    policy: Policy,
    rollout: RolloutEngine,
    sampling: SamplingParams,
    item: Item,
    size: StepSize,
    memory: Memory,
    *,
    free: float,  # bytes that are left on the device beside the weights
    spare: float,  # what plan=true leaves to the allocator, as a part of what is held
) -> Row:
    """Two packed rows of completions that are as long as they may be, and an update that changes nothing."""
    name, device = "a training step", policy.module.device
    encoded = policy.processor.encode(item.prompt)
    groups = Groups(
        number=size.prompts_per_step,
        siblings=size.group_size,
        prompt_tokens=len(encoded.input_ids),
        completion_tokens=size.completion_tokens,
        patches=len(encoded.pixel_values),
    )
    row = groups.in_one_row(size.max_packed_tokens)
    tried = replace(groups, number=min(NUM_ROWS * row.number, groups.number))
    moments = [
        memory.learning(row, all_patches=tried.number * groups.patches, host=0.0),
        memory.updating(host=0.0),
    ]
    predicted = max(moment.total for moment in moments)
    weights = float(sum(weight.nbytes for weight in policy.module.parameters()))
    if (predicted - weights) * (1 + spare) > free:
        return Row(
            name=name,
            ok=None,
            found=f"skipped: does not fit, by plan: {gb(predicted)} GB on one rank, and there are {gb(free + weights)}",
            advice="see what to turn: python train.py .. plan=true, with the engine and nproc of the run",
        )
    completions = full_length(policy, size)
    group = Group(sample=item.sample, prompt=item.prompt, encoded=encoded, completions=completions)
    ones = torch.ones(tried.rows, size.completion_tokens)

    def learn(engine: LocalEngine) -> None:
        for batch in policy.micro_batches([group] * tried.number, ones[:, 0], ones):
            batch = batch.to(device)
            logprobs, _ = policy.logprobs(batch)
            engine.backward(-(logprobs * batch.token_weights).mean())

    def step() -> dict[str, float]:
        # a rate must be positive; this one is 0 in 32 bits, so that the model stays as it is
        engine = LocalEngine(policy.module, OptimConfig(lr=sys.float_info.min), total_updates=2)
        engine.update()  # on no gradient: the optimizer makes its tensors
        return {"learner": seconds_of(lambda: learn(engine)), "update": seconds_of(engine.update)}

    sampled_s = seconds_of(lambda: rollout.generate([encoded] * tried.number, size.group_size, sampling, seed=0))
    with pages_of_their_own():
        extra, seconds = peak_extra_bytes(step, device)
    took = ", ".join(f"{stage} {value:.2g} s" for stage, value in {"sampling": sampled_s, **seconds}.items())
    of = f"{tried.number} x {size.group_size} completions of {size.completion_tokens} tokens: {took}; peak"
    if extra is None:
        return Row(name=name, ok=None, found=f"{of}: this system does not tell; by plan {gb(predicted)} GB")
    measured = weights + extra
    apart = f"{measured / predicted - 1:+.0%}"
    ok = LEAST * predicted <= measured <= (1 + spare) * predicted
    return Row(
        name=name,
        ok=ok,
        found=f"{of} {gb(measured)} GB ({apart}), by plan {gb(predicted)} and {spare:.0%} to spare",
        advice="" if ok else "do not rely on plan=true here: leave more memory free (engine.max_packed_tokens, nproc)",
    )


def full_length(policy: Policy, size: StepSize) -> tuple[Completion, ...]:
    """``group_size`` completions of random words, all as long as they may be."""
    processor = policy.processor
    allowed = torch.ones(processor.config.text_config.vocab_size, dtype=torch.bool)
    allowed[processor.suppressed_ids] = allowed[processor.eos_id] = False
    words = allowed.nonzero().flatten()
    drawn = torch.randint(
        len(words), (size.group_size, size.completion_tokens), generator=torch.Generator().manual_seed(0)
    )
    return tuple(Completion(text="", token_ids=tuple(row), finished=False) for row in words[drawn].tolist())


def gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"
