import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.judges.base import JudgeRequest, parse_events, parse_labels, parse_score, parse_verdict
from vidbridge.shapes_world.exact_judge import ExactJudge, entail, grade, verdict
from vidbridge.shapes_world.language import COLOURS, KINDS, SHAPES

kinds = st.sampled_from(sorted(KINDS))
shapes = st.sampled_from(SHAPES)
sentences = st.builds("the {} {}".format, shapes, kinds)


@pytest.mark.parametrize(
    "answer, score",
    [
        ("the square moves left", 2),
        ("The Square MOVES  left.", 2),
        ("it moves left", 2),
        ("moves left", 2),
        ("I think that the square moves left, slowly and surely", 2),
        ("it moves left. Yes, the square moves left.", 2),  # said twice
        ("the square moves right", 1),  # the family is right
        ("moves up or moves down", 1),
        ("it moves left, then it grows", 1),  # among few
        ("it spins, it grows, it moves left", 1),
        ("it spins, it grows, it hides, it moves left", 0),  # four guesses
        ("the square moves left, moves right, moves up or moves down", 0),
        ("the square grows", 0),
        ("the cross moves left", 0),  # another thing
        ("the cross moves left, the square moves left", 1),
        ("the square", 0),
        ("left", 0),
        ("it removes left", 0),
        # forms of the verb
        ("the square moved left", 2),
        ("the square is moving left", 2),
        ("the square moves to the left", 2),
        ("it moved  to the\nleft", 2),
        ("it is moving leftwards", 2),
        ("did it move left? yes", 2),
        ("it moves left, right after it rests", 2),
        ("it moves left while growing", 1),
        ("it moves left or right", 1),  # each is an event of its own
        ("it moves left, right, up or down", 0),
        ("it moved right", 1),
        # denied
        ("it does not grow, it moves left", 2),
        ("it moves left, not right", 2),
        ("it moves left instead of growing", 2),
        ("it moves left rather than up", 2),
        ("it moves left without shrinking", 2),
        ("it neither grows, spins nor hides but moves left", 2),
        ("it not only moves left but also grows", 1),
        ("the square never moves left", 0),
        ("it no longer moves left", 0),
        ("the square does not move left", 0),
        ("it doesn't move left", 0),
        ("it isn’t moving left", 0),
        ("it cannot move left", 0),
        ("it never grows, spins, hides or shrinks", 0),
        ("it neither moves left nor right", 0),
        ("not once has it moved left", 0),
        ("", 0),
    ],
)
def test_grade(answer, score):
    assert grade("the square moves left", answer) == score


@pytest.mark.parametrize(
    "reference, answer, right",
    [
        ("the square grows", "the square grows", True),
        ("the square grows", "It grows.", True),
        ("the square grows", "it grows; the square grows", True),
        ("the square grows", "the cross grows", False),
        ("the square grows", "it shrinks", False),
        ("the square grows", "it grows or shrinks", False),
        ("the square grows", "it grows and spins", False),
        ("the square grows", "the square", False),
        ("the square grows", "the square is growing", True),
        ("the square grows", "it grew", True),
        ("the square grows", "it has grown", True),
        ("the square shrinks", "it shrank", True),
        ("the square spins", "it spun", True),
        ("the square spins", "the square is spinning", True),
        ("the square hides", "it hid", True),
        ("the square hides", "it is hiding", True),
        ("the square hides", "the hidden event", False),  # words of the question
        ("the square turns red", "the square turned red", True),
        ("the square turns red", "it is turning to red", True),
        ("the square turns red", "it turns red, blue or green", False),
        ("the square turns red, the cross hides", "the square turned red, blue cross hid", True),  # no "turns blue"
        ("the square grows", "the square never grows", False),
        ("the square grows", "it never shrinks, it grows", True),
        ("the square grows", "", False),
        ("grows", "the cross grows", True),  # the reference names nobody
        ("the square grows, then it spins", "it grows, then it spins", True),
        ("the square grows, then it spins", "it spins, then it grows", False),
        ("red", "red", True),
        ("red", "The square is red.", True),
        ("red", "RED", True),
        ("red", "reddish", False),
        ("red", "blue", False),
        ("red", "red or blue", False),
        ("red", "", False),
        ("red", "not red", False),
        ("red", "it isn't red", False),
        ("red", "no longer red", False),
        ("red", "neither red nor blue", False),
        ("red", "red, not blue", True),
        ("red", "It turned red.", True),
        ("the square", "a square", True),
        ("square", "square or cross", False),
        ("the big cross", "a big cross", True),
        ("the big cross", "a small cross", False),
    ],
)
def test_verdict(reference, answer, right):
    assert verdict(reference, answer) is right


@pytest.mark.parametrize(
    "text, event, label",
    [
        ("First the square moves left, then it grows.", "the square grows", "entailment"),
        ("First the square moves left, then it grows.", "it grows", "entailment"),
        ("First the square moves left, then it grows.", "the square moves right", "contradiction"),
        ("First the square moves left, then it moves right.", "the square moves right", "entailment"),
        ("First the square moves left, then it grows.", "the square spins", "neutral"),
        ("First the square moves left, then it grows.", "the cross grows", "neutral"),
        ("the square spins", "the square hides", "contradiction"),
        ("the square never grows", "the square grows", "neutral"),
        ("the square never shrinks but grows", "the square grows", "entailment"),
        ("the square was growing", "the square grows", "entailment"),
        ("", "the square grows", "neutral"),
        ("the square grows", "something else", "neutral"),
    ],
)
def test_entail(text, event, label):
    assert entail(text, event) == label


def ask(**request):
    (reply,) = ExactJudge().ask([JudgeRequest(**request)])
    return reply


def test_extract_gives_each_event_once_with_its_subject_and_at_most_ten():
    caption = "First the square moves left, then it grows, then the cross grows, then it grows. The square grows."
    assert json.loads(ask(kind="extract", text=caption)) == {
        "events": ["the square moves left", "the square grows", "the cross grows"]
    }
    assert len(parse_events(ask(kind="extract", text=", ".join(KINDS)))) == 10
    assert parse_events(ask(kind="extract", text="nothing happens")) == ()


def test_both_sides_see_the_same_ten_events():
    """More than ten would not be counted by precision, so the rest earns no recall."""
    caption = "the square " + ", it ".join(KINDS)
    extracted = parse_events(ask(kind="extract", text=caption))
    every = tuple(f"the square {kind}" for kind in KINDS)
    labels = parse_labels(ask(kind="entail", text=caption, events=every), 12)
    assert extracted == every[:10]
    assert tuple(event for event, label in zip(every, labels) if label == "entailment") == extracted
    assert grade("the square grows", caption) == 0  # a guess at everything


@pytest.mark.parametrize("text", ["neither " * 3000, "neither and " * 3000, "moves left, " * 3000, "to " * 9000])
def test_long_answers_are_read_in_no_time(text):
    started_s = time.perf_counter()
    entail("moves " + text, "the square grows")
    assert time.perf_counter() - started_s < 1.0


def test_replies_are_of_the_asked_form_and_in_order():
    judge = ExactJudge()
    replies = judge.ask(
        [
            JudgeRequest(kind="verdict", reference="red", text="red"),
            JudgeRequest(kind="grade", reference="it spins", text="it hides"),
            JudgeRequest(kind="entail", text="it spins", events=("it spins", "it grows")),
        ]
    )
    assert parse_verdict(replies[0]) is True
    assert parse_score(replies[1]) == 1
    assert parse_labels(replies[2], 2) == ("entailment", "neutral")
    assert judge.ask([]) == []


@pytest.mark.parametrize("reference", ["", "a dog barks", "the square grows, then it spins"])
def test_a_reference_that_cannot_be_graded_against_is_an_error(reference):
    with pytest.raises(ValueError, match="the exact judge"):
        grade(reference, "it grows")


def test_a_reference_out_of_the_language_is_an_error():
    with pytest.raises(ValueError, match="a dog barks"):
        verdict("a dog barks", "a dog barks")


@given(sentences, sentences)
def test_a_sentence_agrees_with_itself_alone(reference, answer):
    same = reference == answer
    assert (grade(reference, answer) == 2) == same
    assert verdict(reference, answer) == same
    assert (entail(answer, reference) == "entailment") == same


@given(shapes, st.lists(kinds, min_size=1, max_size=5, unique=True))
def test_a_caption_entails_what_is_extracted_from_it(shape, told):
    caption = f"First the {shape} " + ", then it ".join(told) + "."
    events = parse_events(ask(kind="extract", text=caption))
    assert events == tuple(f"the {shape} {kind}" for kind in told)
    assert set(parse_labels(ask(kind="entail", text=caption, events=events), len(events))) == {"entailment"}


@given(st.sampled_from(COLOURS), st.sampled_from(COLOURS))
def test_two_colours_are_ambiguous(one, other):
    assert verdict(one, f"{one} {other}") == (one == other)


@given(st.text(), sentences)
def test_any_answer_gets_some_reply(text, reference):
    assert grade(reference, text) in (0, 1, 2)
    assert verdict(reference, text) in (True, False)
