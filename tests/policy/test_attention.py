"""The packed forward against the plain one, in which every completion is a row of its own with its own video."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.policy.builders import TEXT_ALONE, make_policy, random_groups, whole_batch
from tests.policy.dense import dense_attention, packed_ids, sees
from vidbridge.algo.objectives import grpo_loss
from vidbridge.algo.token_weights import LossNorm, token_weights
from vidbridge.policy import attention
from vidbridge.policy.attention import PackedFlex, PackedSdpa
from vidbridge.policy.plain import repeated_logprobs

CASES = {
    "one group": [[5, 9, 2, 7]],
    "several groups": [[5, 9, 2, 7], [3, 3, 12, 4], [8, 1, 2, 6]],
    "groups of one": [[6], [11], [3]],
    "unequal groups": [[4, 8], [5, 5, 5, 1], [7]],
    "nothing but EOS": [[1, 1], [1, 1]],
    "with a prompt of text alone": [[4, 3], [2, 9], [5, 5], [6, 2]],
}


def gradients(module):
    return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in module.named_parameters()}


def assert_same_learner(policy, plain, groups, *, kl_beta=0.0, shift=0.0, within=1e-5):
    """Log-probabilities, loss and every gradient ``within`` so much, with random advantages.

    ``shift`` moves the old log-probabilities, as in a second epoch.
    """
    num_rows = sum(len(group.completions) for group in groups)
    advantages = torch.randn(num_rows, generator=torch.Generator().manual_seed(0))
    batch = whole_batch(policy, groups)
    results = []
    for forward in (
        lambda: policy.logprobs(batch)[0],
        lambda: repeated_logprobs(plain, groups, temperature=policy.temperature, suppressed_ids=policy.suppressed_ids),
    ):
        logprobs = forward()
        mask = batch.loss_mask
        noise = torch.linspace(-shift, shift, mask.numel()).view(mask.shape)
        loss = grpo_loss(
            logprobs,
            old_logprobs=logprobs.detach() + noise,
            ref_logprobs=logprobs.detach() - noise,
            advantages=advantages,
            loss_mask=mask,
            token_weights=token_weights(mask, LossNorm.sequence, 16),
            clip_low=0.2,
            clip_high=0.2,
            kl_beta=kl_beta,
        ).loss
        results.append((logprobs[mask].detach(), loss))
    policy.module.zero_grad()
    plain.zero_grad()
    for _, loss in results:
        loss.backward()
    torch.testing.assert_close(results[0][0], results[1][0], rtol=within, atol=within)
    assert results[0][1].item() == pytest.approx(results[1][1].item(), rel=within, abs=within / 10)
    packed, repeated = gradients(policy.module), gradients(plain)
    whole = torch.cat([g.flatten() for g in repeated.values()]).norm()
    assert whole > 0
    for name, want in repeated.items():
        # of its own size; of the tenth of the whole where that is more, for the rounding of both sides is in it
        assert (packed[name] - want).norm() < within * max(want.norm(), whole / 10), name


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder, temperature=0.7)


@pytest.fixture(scope="module")
def plain(random_qwen_folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)


@pytest.mark.parametrize("case", CASES)
def test_a_shared_prompt_gives_the_same_log_probabilities_loss_and_gradients(policy, plain, case):
    assert_same_learner(policy, plain, random_groups(policy, CASES[case]))


def test_text_alone(policy, plain):
    assert_same_learner(policy, plain, random_groups(policy, [[4, 7], [2, 3]], [TEXT_ALONE]))


def test_with_kl_and_off_policy(policy, plain):
    assert_same_learner(policy, plain, random_groups(policy, CASES["several groups"]), kl_beta=0.1, shift=0.5)


def test_with_gradient_checkpointing(random_qwen_folder, plain):
    checkpointed = make_policy(random_qwen_folder, temperature=0.7, gradient_checkpointing=True)
    assert checkpointed.module.model.language_model.gradient_checkpointing
    assert_same_learner(checkpointed, plain, random_groups(checkpointed, CASES["several groups"]))


@pytest.mark.parametrize("kind", [PackedSdpa, PackedFlex])
@pytest.mark.parametrize("lengths", [[[5, 3, 4]], [[3, 2, 1], [6, 4]], [[4], [2, 2]], [[2], [3]], [[150, 20, 30, 1]]])
@pytest.mark.parametrize("head_size", [8, 16])
def test_every_place_sees_its_prompt_and_its_own_past(kind, lengths, head_size, monkeypatch):
    """Against one dense mask, written as the rule is spoken. Both kinds, 4 query heads on 2 key heads."""
    # It refuses to differentiate on a CPU, where its compiler has no backward kernel; what is not compiled has one.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    ids = packed_ids(lengths)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(ids[0]), head_size, requires_grad=True) for heads in (4, 2, 2))
    want = dense_attention(query, key, value, sees(*ids), 0.3)
    got = kind(*ids).attend(0, query, key, value, 0.3)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    pull = torch.randn_like(want)
    got_gradients = torch.autograd.grad((got * pull).sum(), [query, key, value])
    want_gradients = torch.autograd.grad((want * pull).sum(), [query, key, value])
    for one, other in zip(got_gradients, want_gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_compilations_are_enough_for_all_lengths(monkeypatch):
    """As on a GPU, whose compiler is asked by the same rules; here it translates nothing.

    Two things are compiled, the mask and the attention: once for the first length and once for all others. A row that
    fits into one block of 128 places is another matter, and costs a third time.
    """
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    for name in ("flex_attention", "create_block_mask"):
        monkeypatch.setattr(attention, name, torch.compile(getattr(attention, name), backend="eager"))
    torch._dynamo.reset()
    found = []
    for longest in (150, 250, 333, 600, 777, 150, 20, 30):
        ids = packed_ids([[longest, 20, 31, 1], [40, 5]] if longest > 100 else [[longest, 5]])
        query, key, value = (torch.randn(1, heads, len(ids[0]), 16, requires_grad=True) for heads in (4, 2, 2))
        before = counters["stats"]["unique_graphs"]
        PackedFlex(*ids).attend(0, query, key, value, 0.3).sum().backward()
        found.append(counters["stats"]["unique_graphs"] - before)
    assert found == [2, 2, 0, 0, 0, 0, 2, 0]


def test_somebody_elses_call_still_works(policy, plain):
    """generate and other users of the module bring an ordinary mask."""
    ids = torch.tensor([[5, 20, 21, 22], [0, 0, 23, 24]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        one, other = (module.eval()(input_ids=ids, attention_mask=mask).logits for module in (policy.module, plain))
    torch.testing.assert_close(one[mask.bool()], other[mask.bool()], rtol=1e-5, atol=1e-5)
