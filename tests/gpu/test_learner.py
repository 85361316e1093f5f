"""The learner on the device against the CPU, and a step of training on both."""

from __future__ import annotations

import pytest
import torch

from tests.policy.builders import make_policy, random_groups, whole_batch

LENGTHS = [[5, 9, 2, 7], [3, 3, 12, 4], [6], [4, 4]]  # the fourth prompt has no video


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_cpu(random_qwen_folder, checkpointing):
    found = []
    for device in ("cpu", "cuda"):
        policy = make_policy(
            random_qwen_folder, temperature=0.7, device=device, gradient_checkpointing=checkpointing
        )
        batch = whole_batch(policy, random_groups(policy, LENGTHS)).to(policy.module.device)
        logprobs, entropies = policy.logprobs(batch)
        (logprobs * batch.loss_mask).sum().backward()
        gradient = torch.cat([weight.grad.flatten().cpu() for weight in policy.module.parameters()])
        found.append((logprobs.detach().cpu(), entropies.cpu(), gradient))
    (logprobs, entropies, gradient), (logprobs_there, entropies_there, gradient_there) = found
    torch.testing.assert_close(logprobs_there, logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropies_there, entropies, rtol=1e-4, atol=1e-4)
    assert (gradient_there - gradient).norm() < 1e-4 * gradient.norm()


def test_small_updates_of_16_bit_weights_are_not_lost(random_qwen_folder):
    """A thousandth of what the weights can hold, twenty times: the 32-bit copies know it."""
    policy = make_policy(random_qwen_folder, lr=1e-6, device="cuda", dtype="bfloat16")
    masters = [master.clone() for master in policy.engine.masters]
    batch = whole_batch(policy, random_groups(policy, LENGTHS)).to(policy.module.device)
    for _ in range(20):
        policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
        assert policy.update()["policy/grad_norm"] > 0
    moved = max((new - old).abs().max().item() for new, old in zip(policy.engine.masters, masters))
    assert 5e-6 < moved < 3e-5  # AdamW moves a weight by about lr an update
    assert all(master.is_cuda and master.dtype == torch.float32 for master in policy.engine.masters)
