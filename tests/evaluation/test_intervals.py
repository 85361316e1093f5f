"""Intervals over seeds and items, against numbers by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.evaluation.intervals import interval, resampled_means


def means(values, clusters):
    return resampled_means(np.array(values, float)[None], clusters)[0]


def test_two_items_of_one_seed_have_three_possible_means():
    # both the first, one of each, both the second: 0, 0.5 or 1, with chances 1/4, 1/2, 1/4
    drawn = means([[0.0, 1.0]], ["a", "b"])
    assert set(drawn) == {0.0, 0.5, 1.0}
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.05)


def test_items_of_one_video_come_or_stay_away_together():
    # with the pair (0, 1) as one video, and a second video of one item 1: 0.5 (pair twice), 2/3 (each once) or 1
    assert set(np.round(means([[0.0, 1.0, 1.0]], ["a", "a", "b"]), 9)) == {0.5, round(2 / 3, 9), 1.0}


def test_seeds_are_drawn_too():
    # one video, so that only the seeds vary; of three two are drawn: 0, 0.5 or 1
    assert set(means([[0.0], [1.0], [1.0]], ["a"])) == {0.0, 0.5, 1.0}


def test_the_width_is_that_of_the_crossed_design():
    # value = seed part + item part, with variances 1/4 each, of the seeds estimated from 20: 1/4/19 + 1/4/100
    seeds, items = np.resize([0.0, 1.0], 20), np.resize([0.0, 1.0], 100)
    drawn = means(seeds[:, None] + items[None], range(100))
    assert drawn.std() == pytest.approx((0.25 / 19 + 0.25 / 100) ** 0.5, rel=0.05)


def test_quantities_share_their_draws_so_that_what_they_have_in_common_cancels():
    noisy = np.random.default_rng(0).normal(size=(3, 40))
    one, other = resampled_means(np.stack([noisy, noisy + 0.25]), range(40))
    assert np.allclose(other - one, 0.25)
    assert interval(other - one) == (pytest.approx(0.25), pytest.approx(0.25))


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_the_mean_over_resamples_of_equal_values_is_that_value(num_seeds, clusters, value):
    assert np.allclose(resampled_means(np.full((2, num_seeds, len(clusters)), value), clusters), value)


@pytest.mark.parametrize("num_seeds, least", [(1, 0.9), (3, 0.85), (5, 0.9)])
def test_the_interval_holds_the_truth_about_nineteen_times_in_twenty(num_seeds, least):
    # 40 videos of 3 items; with 5 seeds their part of the error is as large as that of the videos: 1/5 = 8/40
    rng, holds = np.random.default_rng(0), []
    for _ in range(200):
        seeds = rng.normal(size=(num_seeds, 1)) if num_seeds > 1 else 0.0
        videos = np.repeat(rng.normal(size=40) * 8**0.5, 3)
        found = interval(means(seeds + videos + rng.normal(size=(num_seeds, 120)), np.arange(120) // 3))
        holds.append(found[0] <= 0 <= found[1])
    assert least <= np.mean(holds) <= 0.99
