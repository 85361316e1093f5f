"""The whole step on a pretended CUDA device: nothing meets a tensor of another place, and the numbers are the CPU's."""

from __future__ import annotations

import pytest
import torch

from tests.policy.builders import make_policy, ragged_prompts, random_groups, whole_batch
from tests.pretend_cuda import OnDevice, pretend_cuda  # noqa: F401
from vidbridge.rollout.shared_prefix import SharedPrefixRollout


def test_learner(random_qwen_folder, pretend_cuda):
    here, there = (make_policy(random_qwen_folder, temperature=0.7, device=d) for d in ("cpu", "cuda"))
    groups = random_groups(here, [[5, 9, 2, 7], [3, 3, 12, 4], [6]])
    results = []
    for policy in (here, there):
        batch = whole_batch(policy, groups).to(policy.module.device)
        logprobs, entropies = policy.logprobs(batch)
        assert logprobs.device == entropies.device == policy.module.device
        policy.backward(-(logprobs * batch.loss_mask).sum())
        results.append((logprobs.cpu(), policy.update()))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1])


def test_rollout(random_qwen_folder, pretend_cuda):
    here, there = (make_policy(random_qwen_folder, temperature=0.7, device=d) for d in ("cpu", "cuda"))
    encoded = [here.processor.encode(prompt) for prompt in ragged_prompts()]
    one, other = (
        SharedPrefixRollout(p, max_completion_tokens=20, temperature=0.7).generate(encoded, 4, seed=1) for p in (here, there)
    )
    assert pretend_cuda.captured > 0
    assert [[c.token_ids for c in g] for g in one] == [[c.token_ids for c in g] for g in other]
