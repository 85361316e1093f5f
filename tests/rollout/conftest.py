"""What the tests of rollout servers share."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.rollout.serving import PROMPTS, SHORT, TINY, Faulty, make_policy, serving
from vidbridge.policy.policy import Policy
from vidbridge.rollout.served_shared_prefix import ServedSharedPrefix
from vidbridge.rollout.shared_prefix import SharedPrefixRollout


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def encoded(policy):
    return [replace(policy.processor.encode(each), uid=f"qa/train/{nth}") for nth, each in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def wanted(policy, encoded):
    return SharedPrefixRollout(policy).generate(encoded, 3, SHORT, seed=5)


@pytest.fixture
def moved(policy):
    """Other weights than those that a server has read."""
    other = Policy(copy.deepcopy(policy.module), policy.processor)
    with torch.no_grad():
        for weight in other.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return other


@pytest.fixture(scope="module")
def engines():
    return [ServedSharedPrefix(str(TINY), device="cpu") for _ in range(2)]


@pytest.fixture
def two(engines):
    """Two servers, and their engines."""
    first, second = map(Faulty, engines)
    with serving(first) as one, serving(second) as other:
        yield (one, other), (first, second)
