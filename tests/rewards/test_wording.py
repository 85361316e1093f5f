import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.builders import raw, said, sample
from vidbridge.rewards.style import CONNECTIVES, HEDGES, MAX_BONUS, Wording, wording


@pytest.mark.parametrize(
    "caption, score",
    [
        ("", 0.0),
        ("The square grows.", 0.0),
        ("First the square grows.", 0.2),
        ("First the square grows, then it spins.", 0.4),
        ("First it grows, then it spins, finally it hides.", 0.4),  # capped
        ("Then it grows, THEN it spins.", 0.4),  # each time
        ("Then it grows, then it spins, then it hides.", 0.4),  # capped
        ("It grows after that.", 0.2),
        ("It grows, at  the\nsame time it spins.", 0.2),
        ("Maybe it grows.", -0.2),
        ("First it grows, then maybe it spins.", -0.2),  # no bonus beside a hedge
        ("Maybe it grows, maybe not.", -0.4),  # each time
        ("Perhaps it possibly grows, probably; it might, it seems.", -1.0),  # no lower limit
        ("PERHAPS it grows", -0.2),
        # whole words: each of these holds a listed word
        ("It strengthens", 0.0),
        ("The firstborn", 0.0),
        ("thence, nextdoor, beforehand, aftermath, collateral, meanwhiles, finality", 0.0),
        ("mayor, dismay, almighty, seemly, unlikely", 0.0),
        ("then_ and _then", 0.0),
        # no order in time
        ("It moves next to the cross.", 0.0),
        ("It moves next \n to the cross, next it grows.", 0.2),
        ("The after-effect of a same-old now-and-then while-loop.", 0.0),
        ("It grows--then it spins", 0.2),  # a dash, no compound
        ("It could grow.", -0.2),
        ("It appears that squares appear.", -0.4),
        ("(then)", 0.2),
        ("then/next", 0.4),
    ],
)
def test_by_hand(caption, score):
    assert wording(caption) == pytest.approx(score)


def test_each_listed_word_counts_and_no_word_is_in_both_lists():
    assert [wording(f"x {word} y") for word in CONNECTIVES] == pytest.approx([0.2] * len(CONNECTIVES))
    assert [wording(f"x {word} y") for word in HEDGES] == pytest.approx([-0.2] * len(HEDGES))
    assert not set(CONNECTIVES) & set(HEDGES)
    assert {"first", "then", "next", "after", "finally", "later", "before", "while", "meanwhile"} <= set(CONNECTIVES)
    assert {"maybe", "perhaps", "possibly", "probably", "might", "seems"} <= set(HEDGES)


@given(st.lists(st.sampled_from((*CONNECTIVES, *HEDGES, "square", "grows", ","))).map(" ".join))
def test_a_hedge_never_pays(caption):
    assert wording(caption) <= MAX_BONUS
    assert wording(caption + " maybe") < 0


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=3), st.sampled_from((*CONNECTIVES, *HEDGES)))
def test_a_word_with_something_glued_on_is_another_word(glue, word):
    assert word + glue in (*CONNECTIVES, *HEDGES) or wording(word + glue) in (0.0, wording(glue))


def test_the_answer_alone_is_read():
    caption = sample("caption", "the square grows")
    completions = (*said("First it grows, then it spins."), *raw("<think>maybe</think><answer>then</answer>", "then"))
    assert Wording()(caption, completions) == pytest.approx([0.4, 0.2, 0.0])
