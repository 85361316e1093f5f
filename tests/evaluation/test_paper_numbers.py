"""The numbers of papers, by hand."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.evaluation.paper_numbers import METRICS, by_category, pass_at_k, table


def items(*values, **terms):
    """Items of one sample with the term ``choice``, or of the named terms."""
    if values:
        terms = {"choice": values}
    (number,) = {len(column) for column in terms.values()}
    columns = {name: [np.atleast_1d(np.array(each, float)) for each in column] for name, column in terms.items()}
    return [{name: column[n] for name, column in columns.items()} for n in range(number)]


def test_pass_at_k_by_hand():
    # of 4 samples 1 is right: of the 6 pairs 3 hold it; of the 4 triples 3 do
    assert (pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 3), pass_at_k(4, 1, 4)) == (0.25, 0.5, 0.75, 1.0)
    assert (pass_at_k(4, 0, 2), pass_at_k(4, 4, 2), pass_at_k(4, 3, 2)) == (0.0, 1.0, 1.0)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    draws = list(combinations(samples, k))
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_f1_is_of_the_means_not_the_mean_of_f1():
    # recalls 1 and 0, precisions 0 and 1: the means are 1/2 and 1/2, F1 50 %; that of each caption is 0
    numbers = table("caption", 2.0, items(event_recall=[1, 0], event_precision=[0, 1]), ["a", "b"])
    assert numbers["caption F1 %"]["value"] == 50
    assert (numbers["caption recall %"]["value"], numbers["caption precision %"]["value"]) == (50, 50)
    # recall 3/4, precision 1/4: 2 * 3/16 / 1 = 37.5 %
    assert METRICS["caption"].of(np.array([0.75, 0.25])) == 37.5
    assert METRICS["caption"].of(np.array([0.0, 0.0])) == 0


def test_dark_event_infer_is_a_sum_and_a_part_of_the_most():
    numbers = table("dark_event_infer", 2.0, items(grade=[2, 1, 0, 2]), "abcd")
    assert numbers["DarkEventInfer sum"]["value"] == 5  # of 8
    assert numbers["DarkEventInfer %"]["value"] == 62.5


def test_several_samples_make_a_mean_and_pass_at_k():
    # the first item is right in 1 of 4, the second in 4 of 4: mean 5/8, pass@2 (1/2 + 1) / 2
    numbers = table("qa", 1.0, items(choice=[[0, 0, 1, 0], [1, 1, 1, 1]]), "ab")
    assert [numbers[name]["value"] for name in ("QA accuracy %", "qa pass@2 %", "qa pass@4 %")] == [62.5, 75, 100]
    assert list(table("qa", 1.0, items(0, 1), "ab")) == ["QA accuracy %"]  # one sample: no pass@k


def test_only_the_full_grade_passes():
    # grades 1 and 1 are no pass, 2 and 0 are
    numbers = table("dark_event_infer", 2.0, items(grade=[[1, 1], [2, 0]]), "ab")
    assert numbers["dark_event_infer pass@2 %"]["value"] == 50


def test_what_is_not_scored_is_left_out():
    # of the first item one of one scored sample is right, of the second none of two: pass@2 is that of the second alone
    numbers = table("qa", 1.0, items(choice=[[1, np.nan], [0, 0]]), "ab")
    assert (numbers["QA accuracy %"]["value"], numbers["qa pass@2 %"]["value"]) == (50, 0)
    # two of three scored samples are right: no draw of two misses both
    assert table("qa", 1.0, items(choice=[[1, np.nan, 1, 0]]), "a")["qa pass@2 %"]["value"] == 100
    assert "qa pass@2 %" not in table("qa", 1.0, items(choice=[[1, np.nan]]), "a")


def test_items_of_one_video_make_the_interval_wider():
    right = [1, 1, 1, 1, 0, 0, 0, 0] * 10
    apart = table("qa", 1.0, items(*right), range(80))["QA accuracy %"]
    together = table("qa", 1.0, items(*right), [n // 4 for n in range(80)])["QA accuracy %"]
    # 20 videos that are right or wrong as a whole instead of 80 items: the error is sqrt(4) = 2 times as large
    ratio = (together["high"] - together["low"]) / (apart["high"] - apart["low"])
    assert apart["value"] == together["value"] == 50 and ratio == pytest.approx(2, rel=0.15)


def test_a_task_that_no_paper_knows_is_a_part_of_its_maximum():
    assert table("temporal_order", 4.0, items(total=[1, 3]), "ab")["temporal_order %"]["value"] == 50


def test_a_task_that_is_paid_by_other_terms_is_a_part_of_its_maximum_too():
    numbers = table("caption", 2.0, items(total=[1, 2], brevity=[1, 2]), "ab")
    assert {name: number["value"] for name, number in numbers.items()} == {"caption %": 75}


def test_categories_are_told_apart_and_counted():
    categories = [{"duration": "short", "group": 8}, {"duration": "long"}, {"duration": "long", "group": 8}]
    found = by_category("qa", 1.0, items(1, 1, 0), "aab", categories)
    assert {name: (each["value"], each["n"]) for name, each in found["duration"].items()} == {
        "long": (50, 2),
        "short": (100, 1),
    }
    assert found["group"]["8"]["n"] == 2
