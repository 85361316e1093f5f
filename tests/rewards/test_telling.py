import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.builders import said, sample
from vidbridge.rewards.telling import Repetition, Truncated, Words, repetition
from vidbridge.types import Completion

CAPTION = sample("caption", "It grows.")


def test_words_are_those_of_the_answer():
    assert Words()(CAPTION, said("it grows and it spins", "", "one")) == [5, 0, 1]


def test_repetition_by_hand():
    # a b c d a b c d: the runs abcd bcda cdab dabc abcd, one of five a second time
    assert Repetition()(CAPTION, said("a b c d A B C D", "a b c", "")) == pytest.approx([1 / 5, 0, 0])


def test_truncated():
    completions = [Completion(text="", token_ids=(), finished=finished) for finished in (True, False)]
    assert Truncated()(CAPTION, completions) == [0, 1]


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=12))
def test_saying_it_twice_repeats_more(words):
    once, twice = repetition(" ".join(words)), repetition(" ".join(words * 2))
    assert 0 <= once <= twice < 1
