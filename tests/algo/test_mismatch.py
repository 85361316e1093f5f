"""Weights for what another distribution has sampled, and when it is too far off to go on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.algo.mismatch import CORRECTIONS, PATIENCE, GapGate, gap_metrics
from vidbridge.errors import Mismatch

# two completions of three and two tokens: ratios 1/2, 3, 1 and 4, 1, and one place of padding
RATIOS = torch.tensor([[0.5, 3.0, 1.0], [4.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    "name, expected",
    [
        ("none", [[1, 1, 1], [1, 1, 1]]),
        ("token_truncation", [[0.5, 2, 1], [2, 1, 1]]),
        ("sequence_truncation", [[1.5, 1.5, 1.5], [2, 2, 2]]),
        ("sequence_mask", [[1.5, 1.5, 1.5], [0, 0, 0]]),
    ],
)
def test_weights_by_hand(name, expected):
    weights = CORRECTIONS[name](RATIOS.log(), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", CORRECTIONS)
@given(ratios=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5), cap=st.floats(1, 10))
def test_no_weight_is_above_the_cap_or_not_a_number(name, ratios, cap):
    weights = CORRECTIONS[name](torch.tensor([ratios]), cap=cap)
    assert weights.shape == (1, len(ratios))
    assert (weights >= 0).all() and (weights <= max(1, cap) * (1 + 1e-6)).all()
    agreeing = CORRECTIONS[name](torch.zeros(2, 3), cap=cap)
    torch.testing.assert_close(agreeing, torch.ones(2, 3))


# Two tokens are drawn one after the other, each 0 or 1: what the learner gives, and what the sampler draws from.
PI = {(): 0.3, (0,): 0.6, (1,): 0.8}
MU = {(): 0.5, (0,): 0.4, (1,): 0.7}


def probability(policy, tokens):
    product = 1.0
    for place, token in enumerate(tokens):
        ahead = policy[tuple(tokens[:place])]
        product *= ahead if token else 1 - ahead
    return product


def log_ratios(tokens):
    return [
        math.log(probability(PI, tokens[: n + 1]) / probability(PI, tokens[:n]))
        - math.log(probability(MU, tokens[: n + 1]) / probability(MU, tokens[:n]))
        for n in range(2)
    ]


def test_what_a_sequence_weighs_gives_the_learners_mean():
    """Over every completion, as often as the sampler draws it: any number of it has the mean under the learner."""
    every = [(a, b) for a in (0, 1) for b in (0, 1)]
    number = {tokens: 1 + 2 * tokens[0] + 5 * tokens[0] * tokens[1] for tokens in every}
    wanted = sum(probability(PI, tokens) * number[tokens] for tokens in every)

    def mean(name, cap):
        weights = CORRECTIONS[name](torch.tensor([log_ratios(tokens) for tokens in every]), cap=cap)[:, 0].tolist()
        return sum(probability(MU, tokens) * weight * number[tokens] for tokens, weight in zip(every, weights))

    assert mean("sequence_truncation", 100) == pytest.approx(wanted)
    assert mean("sequence_mask", 100) == pytest.approx(wanted)
    assert mean("none", 100) != pytest.approx(wanted, rel=0.05)
    assert mean("token_truncation", 100) != pytest.approx(wanted, rel=0.01)  # it does not know what follows


def test_the_mean_of_a_tokens_weight_is_one():
    """Whatever it is drawn from: so the loss keeps its size."""
    weights = torch.tensor([log_ratios((token, 0)) for token in (0, 1)]).exp()[:, 0]
    assert 0.5 * weights[0] + 0.5 * weights[1] == pytest.approx(1.0)


def test_metrics_by_hand():
    """99 tokens that agree, and one that the learner finds half as likely."""
    half = math.log(2)
    found = gap_metrics(torch.tensor([0.0] * 99 + [-half]))
    assert found == {
        "rollout/logprob_gap": pytest.approx(half / 100),
        "rollout/logprob_gap_p99": 0.0,
        "rollout/logprob_gap_max": pytest.approx(half),
        "rollout/sampler_kl": pytest.approx((0.5 + half - 1) / 100),
        "rollout/effective_frac": pytest.approx(99.5**2 / (100 * 99.25)),
    }
    assert gap_metrics(torch.tensor([half, 0.0]))["rollout/logprob_gap_p99"] == pytest.approx(half)
    assert gap_metrics(torch.tensor([])) == {}


def test_k3_is_the_kl_on_average():
    """From a coin of 0.4 to one of 0.7: 0.4 log(4 / 7) + 0.6 log(6 / 3)."""
    ratios = torch.tensor([0.7 / 0.4] * 4 + [0.3 / 0.6] * 6)
    kl = 0.4 * math.log(4 / 7) + 0.6 * math.log(2)
    assert gap_metrics(ratios.log())["rollout/sampler_kl"] == pytest.approx(kl, rel=1e-6)


def test_the_gate_opens_again_when_the_two_agree():
    gate, far, near = GapGate(0.1), {"rollout/logprob_gap": 0.2}, {"rollout/logprob_gap": 0.1}
    for _ in range(PATIENCE - 1):
        gate(far)
    gate(near)
    for _ in range(PATIENCE - 1):
        gate(far)
    gate({})  # nothing was learnt in that step: it says nothing
    with pytest.raises(Mismatch, match="0.2 nats apart on a token, more than algo.max_logprob_gap=0.1, for 10 steps"):
        gate(far)
    for _ in range(2 * PATIENCE):
        GapGate(None)(far)
