import pytest

from tests.rewards.builders import raw, said, sample
from vidbridge.rewards.rules import Number

COUNT = sample("counting", "3", question="How many cars?")


def test_number_reads_the_answer_block_alone():
    assert Number()(COUNT, said("3", "There are three.", "4", "3 or 4", "")) == [1, 1, 0, 0, 0]
    assert Number()(COUNT, raw("3", "<think>3</think><answer>4</answer>")) == [0, 0]


def test_a_row_whose_answer_is_no_number():
    with pytest.raises(ValueError, match="no number in the reference"):
        Number()(sample("counting", "several"), said("3"))
