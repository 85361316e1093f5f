"""Whether the sampler's decoding step sends tokens to the same experts as the learner."""

from __future__ import annotations

from typing import Sequence

import torch

from vidbridge.backbones import backbone_of
from vidbridge.backbones.routers import recorded
from vidbridge.check_model.base import batch_of
from vidbridge.policy.policy import Policy
from vidbridge.rollout.decode_step import DecodeStep, prefill
from vidbridge.types import Group


@torch.no_grad()
def experts_alike(policy: Policy, groups: Sequence[Group]) -> float | None:
    """Return which part of the experts that the learner chooses for sampled tokens the decoding step chooses too.

    All tokens of all layers, the last of each completion aside, which is never read. None for a dense model.
    """
    module = policy.module
    routers = backbone_of(module.config.model_type).routers(module)
    if not routers:
        return None
    batch = batch_of(policy, groups)
    with recorded(routers) as of_learner:
        policy.forward(batch)
    learner = torch.stack([routing.experts for routing in of_learner])  # [layers, S, k]
    same = total = 0
    first_row = 0
    for group in groups:
        number = len(group.completions)
        rows = slice(first_row, first_row + number)
        first_row += number
        ids, mask, places = batch.completion_ids[rows], batch.sampled_mask[rows], batch.predictors[rows]
        cache, _ = prefill(module.eval(), [group.encoded], number, pad_id=policy.processor.pad_id)
        step = DecodeStep(module, cache)
        first_position = len(group.encoded.input_ids) + group.encoded.rope_delta
        for column in range(ids.shape[1] - 1):
            positions = torch.full((number,), first_position + column, device=ids.device)
            with recorded(routers) as of_sampler:
                step(ids[:, column], positions, column)
            is_read = mask[:, column + 1]  # what is read predicts the next token
            sampler = torch.stack([routing.experts for routing in of_sampler])[:, is_read]  # [layers, n, k]
            expected = learner[:, places[is_read, column + 1]]
            same += int((sampler[..., None] == expected[..., None, :]).sum())
            total += expected.numel()
    return same / max(1, total)
