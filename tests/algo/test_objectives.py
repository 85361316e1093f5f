import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidbridge.algo.objectives import OBJECTIVES, clipped, clipped_sequence, grpo_loss
from vidbridge.algo.token_weights import LossNorm, token_weights

NORMS = list(LossNorm)
MAX_TOKENS = 4


def mask_of(*lengths):
    return torch.arange(MAX_TOKENS)[None] < torch.tensor(lengths)[:, None]


def loss_of(
    logprobs, advantages, mask, norm=LossNorm.sequence, weights=None, old=None, ref=None, kl_beta=0.0, **options
):
    return grpo_loss(
        logprobs,
        old_logprobs=old,
        ref_logprobs=ref,
        advantages=advantages,
        loss_mask=mask,
        token_weights=token_weights(mask, norm, MAX_TOKENS) if weights is None else weights,
        clip_low=0.2,
        clip_high=0.3,
        kl_beta=kl_beta,
        **options,
    )


def one_token(log_ratio, advantage, **options):
    """Loss, gradient and metrics of a single token, weight 1, whose ratio is exp(log_ratio)."""
    logprobs = torch.tensor([[-1.0 + log_ratio]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old = torch.tensor([[-1.0]])
    got = loss_of(logprobs, torch.tensor([advantage]), mask, weights=torch.ones(1, 1), old=old, **options)
    got.loss.backward()
    return got.loss.item(), logprobs.grad.item(), got.metrics


# --- weights: rows of 1 and 3 tokens, at most 4


@pytest.mark.parametrize(
    "norm, first, second",
    [
        (LossNorm.token, 1 / 4, 1 / 4),  # 4 tokens in all
        (LossNorm.sequence, 1 / 2, 1 / 6),  # 1 token of 2 rows; 3 tokens of 2 rows
        (LossNorm.constant, 1 / 8, 1 / 8),  # 4 tokens allowed in each of 2 rows
    ],
)
def test_weights_by_hand(norm, first, second):
    weights = token_weights(mask_of(1, 3), norm, MAX_TOKENS)
    want = torch.tensor([[first, 0, 0, 0], [second, second, second, 0]])
    torch.testing.assert_close(weights, want)


def test_an_empty_row_weighs_nothing_but_counts():
    weights = token_weights(mask_of(2, 0), LossNorm.sequence, MAX_TOKENS)
    assert weights.tolist() == [[0.25, 0.25, 0, 0], [0, 0, 0, 0]]  # 1 / (2 tokens * 2 rows)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_without_tokens_is_zero_and_no_error(norm):
    mask = mask_of(0, 0)
    logprobs = torch.randn(2, MAX_TOKENS, requires_grad=True)
    got = loss_of(logprobs, torch.ones(2), mask, norm)
    got.loss.backward()
    assert got.loss.item() == 0 and (logprobs.grad == 0).all()


@given(st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=6))
def test_weights_sum_to_one_where_lengths_are_divided_out(lengths):
    mask = mask_of(*lengths)
    for norm in (LossNorm.token, LossNorm.sequence):
        assert token_weights(mask, norm, MAX_TOKENS).sum().item() == pytest.approx(1, abs=1e-6)
    assert token_weights(mask, LossNorm.constant, MAX_TOKENS).sum().item() == pytest.approx(
        sum(lengths) / (MAX_TOKENS * len(lengths)), abs=1e-6
    )


# --- one token


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient",
    [
        (1.0, 2.0, -2.0, -2.0),  # d(-ratio * A) / d logprob = -ratio * A
        (1.2, 1.0, -1.2, -1.2),  # inside
        (1.5, 1.0, -1.3, 0.0),  # good and already likelier by more than clip_high: held
        (1.5, -1.0, 1.5, 1.5),  # bad and likelier: pushed back with full force
        (0.5, 1.0, -0.5, -0.5),  # good and rarer: pulled back
        (0.5, -1.0, 0.8, 0.0),  # bad and already rarer by more than clip_low: held
        (0.9, -1.0, 0.9, 0.9),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clip_by_hand(ratio, advantage, loss, gradient):
    got_loss, got_gradient, metrics = one_token(math.log(ratio), advantage)
    assert got_loss == pytest.approx(loss, abs=1e-6)
    assert got_gradient == pytest.approx(gradient, abs=1e-6)
    assert metrics["policy/ratio_max"] == pytest.approx(ratio, abs=1e-6)
    assert metrics["policy/clip_high_frac"] == (1.0 if ratio > 1.3 and advantage > 0 else 0.0)
    assert metrics["policy/clip_low_frac"] == (1.0 if ratio < 0.8 and advantage < 0 else 0.0)


def test_kl_by_hand():
    # policy ln p = -1, reference ln p = -1 + ln 2: exp(d) - d - 1 = 2 - 0.693147 - 1 = 0.306853, slope 1 - exp(d) = -1
    loss, gradient, metrics = one_token(0.0, 0.0, ref=torch.tensor([[-1.0 + math.log(2)]]), kl_beta=0.5)
    assert metrics["policy/kl"] == pytest.approx(0.306853, abs=1e-6)
    assert loss == pytest.approx(0.5 * 0.306853, abs=1e-6)
    assert gradient == pytest.approx(-0.5, abs=1e-6)


def test_kl_is_logged_only_with_a_reference_and_unpaid_with_beta_zero():
    assert "policy/kl" not in one_token(0.0, 1.0)[2]
    loss, _, metrics = one_token(0.0, 1.0, ref=torch.tensor([[0.0]]))
    assert loss == pytest.approx(-1.0) and metrics["policy/kl"] > 0


def test_k3_is_the_divergence_on_average():
    policy, ref = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.4, 0.4, 0.2])
    # every token once as its own row, weighed by how often the policy draws it
    ones = torch.ones(3, 1)
    got = loss_of(
        policy.log()[:, None], torch.zeros(3), ones.bool(), weights=policy[:, None], ref=ref.log()[:, None], kl_beta=1.0
    )
    assert got.loss.item() == pytest.approx((policy * (policy / ref).log()).sum().item(), abs=1e-6)


def test_kl_beta_without_a_reference_is_a_bug():
    with pytest.raises(AssertionError, match="ref_logprobs"):
        one_token(0.0, 1.0, kl_beta=0.1)


# --- batches


def random_batch(seed, *lengths):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), MAX_TOKENS)
    logprobs = -torch.rand(shape, generator=generator)
    old = logprobs + 0.5 * torch.randn(shape, generator=generator)
    return logprobs, old, torch.randn(len(lengths), generator=generator), mask_of(*lengths)


def test_sequence_norm_is_the_mean_over_rows_of_the_mean_over_tokens():
    logprobs, _, _, mask = random_batch(0, 1, 3)
    # on policy the loss is -A for every token: row means -1 and -3, their mean -2; by token (-1 - 3 * 3) / 4
    advantages = torch.tensor([1.0, 3.0])
    assert loss_of(logprobs, advantages, mask, LossNorm.sequence).loss.item() == pytest.approx(-2.0)
    assert loss_of(logprobs, advantages, mask, LossNorm.token).loss.item() == pytest.approx(-2.5)
    assert loss_of(logprobs, advantages, mask, LossNorm.constant).loss.item() == pytest.approx(-10 / 8)


@pytest.mark.parametrize("norm", NORMS)
def test_on_policy_gradient_is_that_of_the_weighted_logprobs(norm):
    logprobs, _, advantages, mask = random_batch(1, 2, 4, 1)
    logprobs.requires_grad_()
    (got,) = torch.autograd.grad(loss_of(logprobs, advantages, mask, norm).loss, logprobs)
    torch.testing.assert_close(got, -token_weights(mask, norm, MAX_TOKENS) * advantages[:, None])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, MAX_TOKENS), min_size=2, max_size=6), st.integers(0, 99), st.sampled_from(NORMS), st.data()
)
def test_micro_batches_add_up_however_they_are_cut(lengths, seed, norm, data):
    logprobs, old, advantages, mask = random_batch(seed, *lengths)
    weights = token_weights(mask, norm, MAX_TOKENS)
    cut = data.draw(st.integers(1, len(lengths) - 1))
    whole = loss_of(logprobs, advantages, mask, weights=weights, old=old, ref=old, kl_beta=0.1).loss
    parts = [
        loss_of(logprobs[s], advantages[s], mask[s], weights=weights[s], old=old[s], ref=old[s], kl_beta=0.1).loss
        for s in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(whole, sum(parts))


def test_what_padding_holds_does_not_matter():
    logprobs, old, advantages, mask = random_batch(2, 2, 3)
    clean = loss_of(logprobs, advantages, mask, old=old, ref=old, kl_beta=0.1)
    for filler in (-math.inf, math.inf, math.nan, 1e4):
        dirty = logprobs.masked_fill(~mask, filler).requires_grad_()
        got = loss_of(dirty, advantages, mask, old=old.masked_fill(~mask, -math.inf), ref=old, kl_beta=0.1)
        got.loss.backward()
        torch.testing.assert_close(got.loss, clean.loss)
        assert got.metrics == pytest.approx(clean.metrics)
        assert dirty.grad.isfinite().all() and (dirty.grad[~mask] == 0).all()


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    """Log-ratios .3 and -.1 of two tokens: exp(.1) = 1.10517, not clipped; advantage 2, sequence norm, one row."""
    old = torch.tensor([[-1.0, -1.0, -9.0, -9.0]])
    logprobs = torch.tensor([[-0.7, -1.1, 5.0, 5.0]], requires_grad=True)
    got = loss_of(logprobs, torch.tensor([2.0]), mask_of(2), old=old, objective=clipped_sequence)
    assert got.loss.item() == pytest.approx(-2 * math.exp(0.1))
    assert got.metrics["policy/ratio_max"] == pytest.approx(math.exp(0.1))
    got.loss.backward()
    # d loss / d logprob = -A * ratio / length, the same for both tokens
    assert logprobs.grad[0].tolist() == pytest.approx([-math.exp(0.1), -math.exp(0.1), 0, 0])


def test_a_sequence_beyond_the_clip_has_no_gradient_in_any_token():
    """Token by token the second (ratio exp(-.1)) would still be pulled up; the sequence (exp(.4) > 1.3) is not."""
    old = torch.tensor([[-1.0, -1.0, 0.0, 0.0]])
    for objective, second in ((clipped, -math.exp(-0.1) / 2), (clipped_sequence, 0.0)):
        logprobs = torch.tensor([[-0.1, -1.1, 0.0, 0.0]], requires_grad=True)
        loss_of(logprobs, torch.ones(1), mask_of(2), old=old, objective=objective).loss.backward()
        assert logprobs.grad[0, :2].tolist() == pytest.approx([0.0, second])


def test_on_policy_both_ratios_give_the_gradient_of_grpo():
    logprobs, _, advantages, mask = random_batch(5, 4, 4)
    gradients = []
    for objective in OBJECTIVES.values():
        leaf = logprobs.clone().requires_grad_()
        loss_of(leaf, advantages, mask, objective=objective).loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_zero_advantages_ask_for_nothing():
    logprobs, _, _, mask = random_batch(4, 3, 3)
    logprobs.requires_grad_()
    loss_of(logprobs, torch.zeros(2), mask).loss.backward()
    assert (logprobs.grad == 0).all()
