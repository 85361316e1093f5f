import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.builders import raw, sample
from vidbridge.rewards.base import GatedSum


class Column:
    """A reward whose numbers are given, one for each completion."""

    def __init__(self, *values, maximum=1.0):
        self.values, self.maximum = list(values), maximum

    def __call__(self, sample, completions):
        return self.values


CAPTION = sample("caption", "the square grows")
TWO = raw("x", "y")


def test_by_hand():
    reward = GatedSum(
        gates={"format": Column(1.0, 0.0), "short": Column(0.5, 1.0)},
        terms={"recall": Column(1.0, 0.5), "precision": Column(0.8, 1.0), "choice": Column(9.0, 9.0)},
        weights={"caption": {"recall": 1.0, "precision": 0.5}, "qa": {"choice": 1.0}},
    )
    first, second = reward.score(CAPTION, TWO)
    assert first.total == pytest.approx(1 * 0.5 * (1 * 1 + 0.5 * 0.8))  # 0.7
    assert second.total == 0  # 0 * 1 * (0.5 + 0.5)
    assert first.terms == {"recall": 1.0, "precision": 0.8}  # before weights and gates
    assert second.gates == {"format": 0.0, "short": 1.0}


def test_only_terms_of_the_task_are_asked_but_weight_zero_is_logged():
    reward = GatedSum(
        gates={},
        terms={"recall": Column(0.25), "lenient": Column(0.75), "other": Column()},  # would fail the length check
        weights={"caption": {"recall": 2.0, "lenient": 0.0}},
    )
    (breakdown,) = reward.score(CAPTION, raw("x"))
    assert breakdown.total == 0.5 and breakdown.terms == {"recall": 0.25, "lenient": 0.75} and breakdown.gates == {}


def test_a_task_without_weights_names_the_tasks():
    reward = GatedSum(gates={}, terms={"choice": Column()}, weights={"qa": {"choice": 1.0}})
    for use in (lambda: reward.score(CAPTION, TWO), lambda: reward.maximum("caption")):
        with pytest.raises(ValueError, match="the task 'caption'. Tasks: qa"):
            use()


def test_a_reward_of_the_wrong_length_is_a_bug():
    reward = GatedSum(gates={}, terms={"choice": Column(1.0)}, weights={"caption": {"choice": 1.0}})
    with pytest.raises(AssertionError, match="choice gave 1 numbers for 2"):
        reward.score(CAPTION, TWO)


def test_maximum():
    reward = GatedSum(
        gates={"format": Column(maximum=1.0)},
        terms={"grade": Column(maximum=2.0), "wording": Column(maximum=0.4), "length": Column(maximum=1.0)},
        weights={"caption": {"grade": 1.5, "wording": 1.0, "length": -0.5}, "qa": {"grade": 0.0}},
    )
    assert reward.maximum("caption") == pytest.approx(1.5 * 2 + 0.4)  # a negative weight earns nothing at best
    assert reward.maximum("qa") == 0


numbers = st.lists(st.floats(-2, 2), min_size=2, max_size=2)


@given(numbers, numbers, st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(-2, 2), st.floats(-2, 2))
def test_the_sum_is_linear_and_the_gate_multiplies(one, other, gate, weight, other_weight):
    reward = GatedSum(
        gates={"gate": Column(*gate)},
        terms={"one": Column(*one), "other": Column(*other)},
        weights={"caption": {"one": weight, "other": other_weight}},
    )
    for index, breakdown in enumerate(reward.score(CAPTION, TWO)):
        want = gate[index] * (weight * one[index] + other_weight * other[index])
        assert math.isclose(breakdown.total, want, abs_tol=1e-9)
