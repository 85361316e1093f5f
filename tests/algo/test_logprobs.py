import math

import pytest
import torch

from vidbridge.algo.logprobs import token_logprobs


def logits_of(*weights):
    return torch.tensor([[weights]]).log()  # [1, 1, V]


def test_by_hand():
    # weights 1 : 3, so p = 1/4, 3/4; entropy -(0.25 ln 0.25 + 0.75 ln 0.75) = 0.562335
    logprobs, entropy = token_logprobs(logits_of(1.0, 3.0), torch.tensor([[1]]), 1.0, None)
    assert logprobs.item() == pytest.approx(math.log(3 / 4), abs=1e-6)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)


def test_temperature():
    # temperature 2 takes the root of the weights: 1 : 2 from 1 : 4
    logprobs, _ = token_logprobs(logits_of(1.0, 4.0), torch.tensor([[1]]), 2.0, None)
    assert logprobs.item() == pytest.approx(math.log(2 / 3), abs=1e-6)


def test_suppressed_tokens_leave_the_distribution():
    # without the 4: 1 : 3 again, and the same entropy
    logits, suppressed = logits_of(1.0, 3.0, 4.0), torch.tensor([2])
    logprobs, entropy = token_logprobs(logits, torch.tensor([[0]]), 1.0, suppressed)
    assert logprobs.item() == pytest.approx(math.log(1 / 4), abs=1e-6)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)
    assert token_logprobs(logits, torch.tensor([[2]]), 1.0, suppressed)[0].item() == -math.inf
    assert logits.isfinite().all()  # the caller's logits are not touched


def test_entropy_of_a_uniform_choice_is_the_log_of_the_choices():
    _, entropy = token_logprobs(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.long), 1.0, None)
    torch.testing.assert_close(entropy, torch.full((2, 3), math.log(8)))


def test_equals_log_softmax_and_has_its_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, requires_grad=True)
    ids = torch.randint(6, (2, 5))
    logprobs, entropy = token_logprobs(logits, ids, 0.7, torch.tensor([6]))
    plain = (logits[..., :6] / 0.7).log_softmax(-1)
    torch.testing.assert_close(logprobs, plain.gather(-1, ids[..., None]).squeeze(-1))
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach())
    (got,) = torch.autograd.grad(logprobs.sum(), logits)
    (want,) = torch.autograd.grad(plain.gather(-1, ids[..., None]).sum(), logits)
    torch.testing.assert_close(got, want)
    assert not entropy.requires_grad


def test_half_precision_logits_are_normalised_in_float32():
    logits = torch.randn(1, 4, 100, dtype=torch.bfloat16)
    logprobs, _ = token_logprobs(logits, torch.zeros(1, 4, dtype=torch.long), 1.0, None)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, logits.float().log_softmax(-1)[..., 0])
