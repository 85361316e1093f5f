"""The numbers of summary.json, by hand, and what they depend on."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import make_policy, ragged_prompts
from tests.rewards.builders import sample
from vidbridge.evaluation.evaluator import Evaluator, TaskScore, normalised_mean, task_score
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import SamplingParams


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


def make_evaluator(folder, max_rows=64, seed=0, direct=False):
    policy = make_policy(folder)
    return Evaluator(
        tasks={"test": {"qa": Prompts()}},
        policy=policy,
        processor=policy.processor,
        rollout=SharedPrefixRollout(policy, max_rows=max_rows),
        sampling=SamplingParams(max_completion_tokens=8),
        reward=GatedSum(gates={}, terms={"sum": TokenSum()}, weights={"qa": {"sum": 1.0}}),
        max_rows=max_rows,
        seed=seed,
        direct=direct,
    )


def test_what_an_item_is_sampled_with_does_not_depend_on_how_many_fit_in_memory(random_qwen_folder):
    def rewards(max_rows, seed=0):
        evaluator = make_evaluator(random_qwen_folder, max_rows, seed)
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


def item(*totals, source="a.mp4", well_formed=True):
    return {
        "source": source,
        "totals": list(totals),
        "gates": {"format": [1.0] * len(totals)},
        "terms": {},
        "well_formed": [well_formed] * len(totals),
    }


def test_the_mean_is_over_items_of_the_mean_over_samples():
    # items earn (0 + 1) / 2 and (2 + 2) / 2: mean 1.25
    result = task_score([item(0.0, 1.0), item(2.0, 2.0, source="b.mp4", well_formed=False)], 2.0)
    assert (result.mean, result.max, result.n, result.format_frac) == (1.25, 2.0, 2, 0.5)
    # a resample of two videos has mean 0.5, 1.25 or 2.0, with chances 1/4, 1/2, 1/4
    assert (result.low, result.high) == (0.5, 2.0)


def test_items_of_one_video_are_resampled_together():
    result = task_score([item(0.0), item(2.0)], 2.0)
    assert (result.low, result.high) == (1.0, 1.0)  # one video: nothing to resample


def test_what_could_not_be_scored_counts_for_nothing():
    # null in the file: the first item has one number, the second none
    result = task_score([item(1.0, None), item(None, None)], 2.0)
    assert (result.mean, result.n) == (1.0, 1)


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=20))
def test_the_interval_is_repeatable_and_inside_the_range(values):
    rows = [item(value, source=str(place)) for place, value in enumerate(values)]
    result = task_score(rows, 2.0)
    assert result == task_score(rows, 2.0)
    assert min(values) - 1e-9 <= result.low <= result.high <= max(values) + 1e-9


def test_items_that_are_known_are_not_asked_again_and_change_nothing(random_qwen_folder):
    evaluator = make_evaluator(random_qwen_folder)
    rows = []
    whole = evaluator.scores("test", num_items=3, num_samples=2, advance=lambda done: None, note=rows.extend)
    known, fresh = [row for row in rows if row["uid"] != "qa/test/1"], []
    again = evaluator.scores(
        "test", num_items=3, num_samples=2, advance=lambda done: None, known=known, note=fresh.extend
    )
    assert [row["uid"] for row in fresh] == ["qa/test/1"]
    assert again.tasks == whole.tasks and again.items == whole.items == {"qa": rows}


def test_progress_counts_every_completion_once_and_goes_on_while_they_grow(random_qwen_folder):
    """Two prompts at a time: each of the 3 x 2 is counted once, and each of at most 8 tokens is a sign of life."""
    evaluator, told, rows = make_evaluator(random_qwen_folder, max_rows=4), [], []
    evaluator.scores("test", num_items=3, num_samples=2, advance=told.append, note=rows.extend)
    assert sum(told) == evaluator.num_completions("test", 3, 2) == 6
    assert 2 <= told.count(0) and told[0] == 0
    again = []
    evaluator.scores("test", num_items=3, num_samples=2, advance=again.append, known=rows[:2])
    assert sum(again) == 2


def test_of_a_direct_question_the_reply_is_the_answer(random_qwen_folder):
    evaluator = make_evaluator(random_qwen_folder, direct=True)
    items = evaluator.scores("test", num_items=3, greedy=True, advance=lambda done: None).items["qa"]
    # noise may hold an answer block of its own; else all of it is in one
    assert all("<answer>" in text for row in items for text in row["completions"])
