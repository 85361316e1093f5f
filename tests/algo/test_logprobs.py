import math

import pytest
import torch

from vidbridge.algo.logprobs import linear_logprobs

NOTHING = torch.empty(0, dtype=torch.long)


def logprob_of(weights, token, temperature=1.0, suppressed=NOTHING):
    """Of one place whose logits are the logs of ``weights``: the hidden state is 1, the projection those logs."""
    projection = torch.tensor(weights).log()[:, None]
    logprobs, entropy = linear_logprobs(torch.ones(1, 1), projection, torch.tensor([token]), temperature, suppressed)
    return logprobs.item(), entropy.item()


def test_by_hand():
    # weights 1 : 3, so p = 1/4, 3/4; entropy -(0.25 ln 0.25 + 0.75 ln 0.75) = 0.562335
    logprob, entropy = logprob_of([1.0, 3.0], 1)
    assert logprob == pytest.approx(math.log(3 / 4), abs=1e-6)
    assert entropy == pytest.approx(0.562335, abs=1e-6)


def test_temperature():
    # temperature 2 takes the root of the weights: 1 : 2 from 1 : 4
    assert logprob_of([1.0, 4.0], 1, 2.0)[0] == pytest.approx(math.log(2 / 3), abs=1e-6)


def test_suppressed_tokens_leave_the_distribution():
    # without the 4: 1 : 3 again, and the same entropy
    logprob, entropy = logprob_of([1.0, 3.0, 4.0], 0, suppressed=torch.tensor([2]))
    assert logprob == pytest.approx(math.log(1 / 4), abs=1e-6)
    assert entropy == pytest.approx(0.562335, abs=1e-6)
    assert logprob_of([1.0, 3.0, 4.0], 2, suppressed=torch.tensor([2]))[0] == -math.inf


def test_entropy_of_a_uniform_choice_is_the_log_of_the_choices():
    _, entropy = linear_logprobs(torch.zeros(6, 4), torch.randn(8, 4), torch.zeros(6, dtype=torch.long), 1.0, NOTHING)
    torch.testing.assert_close(entropy, torch.full((6,), math.log(8)))


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 100, None])
def test_equals_log_softmax_of_all_logits_and_has_its_gradients(chunk_size):
    torch.manual_seed(0)
    hidden = torch.randn(10, 5, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(7, 5, requires_grad=True)
    ids, share = torch.randint(6, (10,)), torch.randn(10)
    logprobs, entropy = linear_logprobs(hidden, weight, ids, 0.7, torch.tensor([6]), chunk_size)
    plain = ((hidden @ weight.T)[:, :6] / 0.7).log_softmax(-1)
    picked = plain.gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs, picked)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach())
    assert not entropy.requires_grad
    got = torch.autograd.grad((share * logprobs).sum(), [hidden, weight])
    want = torch.autograd.grad((share * picked).sum(), [hidden, weight])
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert got[1][6].eq(0).all()  # nothing to learn about a token that is never sampled


def test_half_precision_logits_are_normalised_in_float32():
    hidden, weight = torch.randn(4, 16, dtype=torch.bfloat16), torch.randn(100, 16, dtype=torch.bfloat16)
    logprobs, _ = linear_logprobs(hidden, weight.requires_grad_(), torch.zeros(4, dtype=torch.long), 1.0, NOTHING)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, (hidden @ weight.T).float().log_softmax(-1)[:, 0])
    logprobs.sum().backward()
    assert weight.grad.dtype == torch.bfloat16


def test_the_largest_tensor_is_a_chunk_of_logits():
    """Whatever autograd keeps for the backward pass: hidden states and one number a place, never [M, V]."""
    kept = []
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        linear_logprobs(hidden, weight, torch.zeros(64, dtype=torch.long), 1.0, NOTHING, 4)
    assert max(kept) == weight.numel() < 64 * 1000
