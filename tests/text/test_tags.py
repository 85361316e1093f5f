import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.text.tags import Tagged, answer_of, read_tags

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
plain = st.text(alphabet=string.ascii_letters + string.digits + " .,\n'\"/éß", max_size=30)
white = st.text(alphabet=" \t\n\r", max_size=4)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>x</think><answer>B</answer>", "B"),
        ("  <think>x</think>\n\n<answer>\n B \n</answer>\n", "B"),
        ("<think></think><answer></answer>", ""),
        ("<think>a < b and b > c</think><answer>a</answer>", "a"),
        ("<think>line\nline</think><answer>two\nlines</answer>", "two\nlines"),
    ],
)
def test_well_formed(text, answer):
    tagged = read_tags(text)
    assert tagged is not None and tagged.answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "<answer>B</answer>",
        "<think>x</think>",
        "<think>x</think>B",
        "<answer>B</answer><think>x</think>",
        "<think>x</think>so <answer>B</answer>",
        "so <think>x</think><answer>B</answer>",
        "<think>x</think><answer>B</answer> indeed",
        "<think>x</think><answer>B</answer><answer>B</answer>",
        "<think>x</think><think>y</think><answer>B</answer>",
        "<think>the answer goes in <answer></think><answer>B</answer>",
        "<think><think>x</think></think><answer>B</answer>",
        "<think>x</think><answer><answer>B</answer></answer>",
        "<think>x</think><answer>B<think></answer>",
        "<think>x</think><answer>B</ANSWER></answer>",
        "<THINK>x</THINK><ANSWER>B</ANSWER>",
        "<think>x</think><answer>B",
        "<think>x<answer>B</answer>",
        "< think>x</think><answer>B</answer>",
    ],
)
def test_malformed(text):
    assert read_tags(text) is None


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>x</think><answer> B </answer>", "B"),
        ("<answer>B</answer>", "B"),
        ("B", ""),
        ("<answer>A</answer><answer>B</answer>", ""),
        ("<answer>A<think>B</answer>", ""),
        ("</answer>A<answer>", ""),
        ("<ANSWER>B</ANSWER>", ""),
        ("", ""),
    ],
)
def test_answer_is_read_with_or_without_the_rest(text, answer):
    assert answer_of(text) == answer


@given(plain, plain, white, white, white)
def test_what_is_put_in_comes_out(thinking, answer, before, between, after):
    text = f"{before}<think>{thinking}</think>{between}<answer>{answer}</answer>{after}"
    assert read_tags(text) == Tagged(thinking.strip(), answer.strip())
    assert answer_of(text) == answer.strip()


@given(plain, plain, st.sampled_from(TAGS), st.data())
def test_one_more_tag_anywhere_is_malformed(thinking, answer, tag, data):
    text = f"<think>{thinking}</think><answer>{answer}</answer>"
    place = data.draw(st.integers(0, len(text)))
    spoilt = text[:place] + tag + text[place:]
    # inside another tag the new one only breaks it ("<thi</think>nk>"), which is malformed just the same
    assert read_tags(spoilt) is None


@given(st.lists(st.one_of(plain, st.sampled_from(TAGS)), max_size=12).map("".join))
def test_a_well_formed_text_has_each_tag_once_and_its_answer_is_the_same_for_both_readers(text):
    tagged = read_tags(text)
    if tagged is not None:
        assert [text.count(tag) for tag in TAGS] == [1, 1, 1, 1]
        assert tagged.answer == answer_of(text)
        assert not any(tag in tagged.answer + tagged.thinking for tag in TAGS)
