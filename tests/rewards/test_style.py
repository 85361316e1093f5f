import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.builders import said, sample
from vidbridge.rewards.style import Repetition, Truncated, Words, repetition
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
def test_new_words_repeat_nothing_and_old_ones_all(words):
    """Said n times over: at most as many different runs as the text has words."""
    text, times = " ".join(words), 9
    fresh = " ".join(f"new{number}" for number in range(len(words)))
    assert repetition(fresh) == 0 <= repetition(text)
    assert repetition(" ".join([text] * times)) >= 1 - len(words) / (times * len(words) - 3)
