"""The numbers of summary.json, by hand, and what they depend on."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import make_policy, ragged_prompts
from tests.rewards.builders import sample
from vidbridge.evaluate import Evaluator, TaskScore, bootstrap_interval, normalised_mean, task_score
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.shared_prefix import SharedPrefixRollout


class Prompts:
    """As much of a task as an evaluation looks at: the three ragged prompts."""

    name = "qa"
    read = None

    def __len__(self):
        return 3

    def sample(self, index):
        return dataclasses.replace(sample("qa", "A"), uid=f"qa/test/{index}")

    def prompt(self, row):
        return ragged_prompts()[int(row.uid[-1])]


class TokenSum:
    """Tells completions apart."""

    maximum = 1.0

    def __call__(self, sample, completions):
        return [float(sum(done.token_ids)) for done in completions]


def test_what_an_item_is_sampled_with_does_not_depend_on_how_many_fit_in_memory(random_qwen_folder):
    policy = make_policy(random_qwen_folder)
    reward = GatedSum(gates={}, terms={"sum": TokenSum()}, weights={"qa": {"sum": 1.0}})

    def rewards(max_rows, seed=0):
        evaluator = Evaluator(
            tasks={"test": {"qa": Prompts()}},
            policy=policy,
            processor=policy.processor,
            rollout=SharedPrefixRollout(policy, max_completion_tokens=8, max_rows=max_rows),
            reward=reward,
            max_rows=max_rows,
            seed=seed,
        )
        return evaluator.scores("test", num_items=3, num_samples=2, advance=lambda done: None).tasks["qa"]

    assert rewards(2) == rewards(4) == rewards(64) != rewards(64, seed=1)


def score(mean, maximum):
    return TaskScore(mean=mean, max=maximum, n=1, low=mean, high=mean, format_frac=1.0)


def test_the_normalised_mean_averages_over_tasks_what_was_earned_of_the_maximum():
    # (0.5 / 1 + 1.0 / 2 + 1.9 / 1.9) / 3 = (0.5 + 0.5 + 1) / 3
    assert normalised_mean([score(0.5, 1.0), score(1.0, 2.0), score(1.9, 1.9)]) == pytest.approx(2 / 3)


def test_below_zero_counts_as_zero():
    # hedging: -0.4 of 1.9 is cut to 0, so (0 + 1) / 2
    assert normalised_mean([score(-0.4, 1.9), score(1.0, 1.0)]) == 0.5


def test_the_mean_is_over_items_of_the_mean_over_samples():
    # items earn (0 + 1) / 2 and (2 + 2) / 2: mean 1.25
    result = task_score(np.array([[0.0, 1.0], [2.0, 2.0]]), 2.0, format_frac=0.5)
    assert (result.mean, result.max, result.n, result.format_frac) == (1.25, 2.0, 2, 0.5)
    # a resample of two items has mean 0.5, 1.25 or 2.0, with chances 1/4, 1/2, 1/4
    assert (result.low, result.high) == (0.5, 2.0)


def test_the_interval_is_that_of_the_normal_approximation_for_many_items():
    # 400 items, half 0 and half 1: standard error 0.5 / 20 = 0.025, interval 0.5 +- 1.96 * 0.025 = 0.049
    low, high = bootstrap_interval(np.repeat([0.0, 1.0], 200))
    assert (low, high) == (pytest.approx(0.451, abs=0.006), pytest.approx(0.549, abs=0.006))


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=20))
def test_the_interval_is_repeatable_and_inside_the_range(values):
    items = np.array(values)
    low, high = bootstrap_interval(items)
    assert (low, high) == bootstrap_interval(items)
    assert items.min() - 1e-9 <= low <= high <= items.max() + 1e-9
