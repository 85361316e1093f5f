"""Decoding by a captured graph against the same step without one, against the learner and against the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.policy.builders import make_policy, ragged_prompts, sampled_groups, whole_batch
from tests.rollout.builders import sampler
from vidbridge.backbones.layers import linear
from vidbridge.rollout.decode_step import DecodeStep
from vidbridge.rollout.kv_cache import _product


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def policy(request, random_qwen_folder):
    return make_policy(random_qwen_folder, temperature=0.8, device="cuda", dtype=request.param)


def rollout_of(policy, tokens=40):
    return sampler(policy, max_completion_tokens=tokens, temperature=policy.temperature)


def sampled(policy, *, greedy=False, seed=1, tokens=40):
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    return rollout_of(policy, tokens).generate(encoded, 8, seed=seed, greedy=greedy)


def without_a_graph(self, token_ids, positions, column):
    self.cache.reserve(column + 1)
    column = torch.full((1,), column, device=token_ids.device)
    return self._forward((token_ids, positions, column), visible=self.cache.columns)


@pytest.mark.parametrize("greedy", [True, False])
def test_a_captured_step_gives_the_logits_of_one_that_is_not(policy, monkeypatch, greedy):
    """Step by step on the same cache, while room grows and rows leave."""
    monkeypatch.setattr("vidbridge.rollout.kv_cache.FIRST_COLUMNS", 3)
    captured, worst = DecodeStep.__call__, []

    def both(self, token_ids, positions, column):
        found = captured(self, token_ids, positions, column).clone()
        expected = without_a_graph(self, token_ids, positions, column)
        worst.append((found.float() - expected.float()).abs().max().item())
        return found

    monkeypatch.setattr(DecodeStep, "__call__", both)
    sampled(policy, greedy=greedy)
    assert len(worst) > 10 and max(worst) <= (1e-5 if policy.module.dtype == torch.float32 else 1e-1)


def test_completions_are_those_of_decoding_without_a_graph(policy, monkeypatch):
    if policy.module.dtype != torch.float32:
        pytest.skip("in 16 bits a token may turn on the order of a sum; the logits are compared above")
    with_graphs = sampled(policy)
    monkeypatch.setattr(DecodeStep, "__call__", without_a_graph)
    plain = sampled(policy)
    assert [[done.token_ids for done in group] for group in with_graphs] == [
        [done.token_ids for done in group] for group in plain
    ]


def test_completions_are_those_of_the_cpu(policy, random_qwen_folder):
    if policy.module.dtype != torch.float32:
        pytest.skip("the CPU rounds 16 bits otherwise")
    here = make_policy(random_qwen_folder, temperature=0.8)
    pairs = list(zip((c for g in sampled(policy) for c in g), (c for g in sampled(here) for c in g), strict=True))
    assert sum(one.token_ids == other.token_ids for one, other in pairs) >= len(pairs) - 1  # a tie may turn


def test_sampler_and_learner_agree(policy, record_property):
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    completions = sampled(policy, tokens=16)
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions)).to(policy.module.device)
    gap = (policy.logprobs(batch)[0].detach() - batch.sampler_logprobs).abs()[batch.loss_mask]
    record_property("mean gap, nats", gap.mean().item())
    record_property("largest gap, nats", gap.max().item())
    assert gap.mean() < (1e-5 if policy.module.dtype == torch.float32 else 5e-2)


def test_one_rollout_after_the_other_takes_no_more_memory(policy):
    sampled(policy)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for seed in range(10):
        sampled(policy, seed=seed)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2**25


@pytest.mark.parametrize("shape", [(16, 37, 128), (3, 1000, 64)])
def test_scores_of_16_bits_are_summed_in_32(shape):
    rows, columns, size = shape
    torch.manual_seed(0)
    one = 8 * torch.randn(2, 3, rows, size, device="cuda", dtype=torch.bfloat16) + 4
    other = torch.randn(2, 3, columns, size, device="cuda", dtype=torch.bfloat16) + 4
    found = _product(one, other.mT)
    expected = one.double() @ other.double().mT
    assert found.dtype == torch.float32 and ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_the_product_with_a_layer_is_that_of_the_layer():
    layer = torch.nn.Linear(256, 1024, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(5, 256, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(linear(layer, rows), F.linear(rows, layer.weight, layer.bias))
    on_cpu = linear(copy.deepcopy(layer).cpu(), rows.cpu())
    torch.testing.assert_close(on_cpu, linear(layer, rows).cpu(), rtol=2e-2, atol=2e-2)
