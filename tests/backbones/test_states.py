"""The states of recurrent layers: forked to the completions of a prompt, kept for the rows that stay."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.backbones.families import write_family
from tests.policy.builders import make_policy, ragged_prompts, random_groups, sampled_groups, whole_batch
from tests.policy.test_attention import CASES, assert_same_learner
from tests.rollout.builders import sampler
from vidbridge.backbones import backbone_of
from vidbridge.backbones.gated_delta import GatedDelta
from vidbridge.rollout.kv_cache import SharedPrefixCache
from vidbridge.types import Completion

RECURRENT = ["qwen3_5"]


@pytest.fixture(scope="module", params=RECURRENT)
def folder(request, tmp_path_factory):
    return write_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def policy(folder):
    return make_policy(folder, temperature=0.7)


def zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor)


FAULTS = {
    "the memory is not forked": lambda tail, memory: (tail, zeros(memory)),
    "the convolution begins with zeros": lambda tail, memory: (zeros(tail), memory),
    "the convolution is a token late": lambda tail, memory: (tail.roll(1, dims=1), memory),
    "another prompt's": lambda tail, memory: (tail.roll(1, dims=0), memory.roll(1, dims=0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_is_not_the_prompts_is_noticed(folder, policy, monkeypatch, fault):
    plain = backbone_of(policy.module.config.model_type).model_class.from_pretrained(folder)
    groups, call = random_groups(policy, CASES["several groups"]), GatedDelta.__call__
    monkeypatch.setattr(
        GatedDelta, "__call__", lambda self, inputs, lengths, state: call(
            self, inputs, lengths, None if state is None else FAULTS[fault](*state)
        )
    )  # fmt: skip
    with pytest.raises(AssertionError):
        assert_same_learner(policy, plain, groups)


def test_positions_off_by_one_are_noticed(folder, policy):
    """Recurrent layers see no positions: it is the one layer that attends which must."""
    plain = backbone_of(policy.module.config.model_type).model_class.from_pretrained(folder)
    groups = [
        replace(group, encoded=replace(group.encoded, rope_delta=group.encoded.rope_delta + 1))
        for group in random_groups(policy, CASES["one group"])
    ]
    right = policy.logprobs(whole_batch(policy, random_groups(policy, CASES["one group"])))[0]
    assert_same_learner(policy, plain, groups)  # both sides are told the same
    assert (policy.logprobs(whole_batch(policy, groups))[0] - right).abs().max() > 1e-4


def test_a_row_may_be_read_in_two_parts(policy):
    """The state after 70 of 150 tokens, more than a chunk, and the rest from there: as all at once, padding or not."""
    layer = next(layer for layer in policy.module.model.language_model.layers if hasattr(layer, "linear_attn"))
    cell = GatedDelta(layer.linear_attn)
    generator = torch.Generator().manual_seed(0)
    projected, decay, beta = (
        torch.rand(2, 150, width, generator=generator) for width in (cell.module.conv_dim, 4, 4)
    )
    inputs = (projected - 0.5, -decay, beta)
    whole, after = cell(inputs, None, None)
    _, state = cell([each[:, :90] for each in inputs], [70, 70], None)
    rest, end = cell([each[:, 70:] for each in inputs], None, state)
    torch.testing.assert_close(rest, whole[:, 70:], atol=1e-5, rtol=0)
    for one, other in zip(end, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_rows_that_stay_keep_their_states():
    cache = SharedPrefixCache(torch.ones(3, 5, dtype=torch.bool), width=4)
    cache.states[2] = (torch.arange(12.0)[:, None], torch.arange(12)[:, None, None])  # row p * 4 + w
    cache.keep(torch.tensor([0, 2]), torch.tensor([[3, 1], [0, 2]]))
    assert [each.flatten().tolist() for each in cache.states[2]] == [[3, 1, 8, 10]] * 2


def test_completions_that_end_one_after_the_other(policy):
    """The sampler's log-probabilities are the learner's although rows leave the batch."""
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    rollout = sampler(policy, max_completion_tokens=24, temperature=0.7, stop=tuple("aeiou 0123456789"))
    completions = rollout.generate(encoded, 6, seed=1)
    lengths = {len(done.token_ids) for group in completions for done in group}
    assert len(lengths) > 5 and min(lengths) < 8
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    apart = (policy.logprobs(batch)[0] - batch.sampler_logprobs)[batch.sampled_mask]
    assert apart.abs().max() < 1e-4


@pytest.mark.parametrize("lengths", [[3], [3, 1]])
def test_a_prompt_without_completions_beside_others(policy, lengths):
    """Completions of one token take no place in a packed row."""
    single, full = random_groups(policy, [[1], lengths])
    assert single.completions == (Completion(text="", token_ids=(policy.processor.eos_id,)),)
    alone, together = (policy.logprobs(whole_batch(policy, groups))[0] for groups in ([full], [single, full]))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_forking_is_exact_in_64_bits(family):
    done = subprocess.run(
        [sys.executable, "-m", "tests.backbones.float64", family], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("within 1e-10") == len(CASES) + 1
