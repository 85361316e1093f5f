import json
import math

import pytest

from tests.rewards.builders import raw, said, sample
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.rewards.events import EventPrecision, EventRecall
from vidbridge.rewards.judged import Grade, Verdict
from vidbridge.rewards.rules import Choice, Format
from vidbridge.shapes_world.exact_judge import ExactJudge

QA = sample("qa", "B", options=("moves left", "grows", "spins", "hides"))
DARK = sample("dark_event_infer", "the square moves left")
MIX = sample("mix_vid_qa", "the square grows")
CAPTION = sample("caption", "First the square moves left, then it grows, finally it spins.")


class Recorder(ExactJudge):
    """The exact judge, and what it was asked."""

    def __init__(self):
        self.calls = []

    def ask(self, requests):
        self.calls.append(list(requests))
        return super().ask(requests)


class Says:
    """A judge that always says the same."""

    def __init__(self, **reply):
        self.reply = json.dumps(reply)

    def ask(self, requests):
        return [self.reply] * len(requests)


class Garbled:
    def ask(self, requests):
        return ["Score 0, not a Score 2"] * len(requests)


def test_format():
    completions = (*said("B", ""), *raw("B", "<answer>B</answer>", "<think>x</think><answer>B</answer>!"))
    assert Format()(QA, completions) == [1, 1, 0, 0, 0]


def test_choice():
    completions = said("B", "(b)", "Not A. The answer is B.", "it grows", "A", "E", "A or C", "")
    assert Choice()(QA, completions) == [1, 1, 1, 1, 0, 0, 0, 0]


def test_choice_reads_the_answer_block_alone():
    completions = raw("B", "<think>B</think>", "<think>B</think><answer>A</answer>", "<answer>B</answer>")
    assert Choice()(QA, completions) == [0, 0, 0, 1]


def test_choice_needs_options():
    with pytest.raises(ValueError, match="needs a row with options"):
        Choice()(CAPTION, said("B"))


def test_grade_and_verdict():
    assert Grade(ExactJudge())(DARK, said("it moves left", "it moves up", "it grows", "")) == [2, 1, 0, 0]
    assert Verdict(ExactJudge())(MIX, said("the square grows", "it shrinks", "it grows or shrinks", "")) == [1, 0, 0, 0]


def test_the_judge_is_asked_once_a_group_and_never_about_nothing():
    judge = Recorder()
    completions = (*said("it grows", ""), *raw("it grows"), *said("it spins"))
    assert Verdict(judge)(MIX, completions) == [1, 0, 0, 0]
    ((first, second),) = judge.calls
    assert (first.kind, first.question, first.reference) == ("verdict", "What happens?", "the square grows")
    assert (first.text, second.text) == ("it grows", "it spins")


def test_recall_by_hand():
    captions = said(
        "The square moves left, then it grows, then it spins.",
        "It grows.",  # 1 of 3
        "It grows, it hides, it shrinks, it spins.",  # 2 of 3, whatever else it says
        "The cross grows.",  # another thing
        "",
    )
    assert EventRecall(ExactJudge())(CAPTION, captions) == pytest.approx([1, 1 / 3, 2 / 3, 0, 0])


def test_precision_by_hand():
    captions = said(
        "It grows.",  # 1 of 1
        "The square grows, hides, shrinks, turns red.",  # 1 of 4: hides and shrinks are contradicted, red is left open
        "It turns red.",
        "A square.",  # no event
        "",
    )
    assert EventPrecision(ExactJudge())(CAPTION, captions) == pytest.approx([1, 1 / 4, 0, 0, 0])
    assert EventPrecision(ExactJudge(), lenient=True)(CAPTION, captions) == pytest.approx([1, 2 / 4, 1, 0, 0])


def test_the_reference_earns_everything():
    gold = said(CAPTION.answer)
    for reward in (EventRecall(ExactJudge()), EventPrecision(ExactJudge()), EventPrecision(ExactJudge(), lenient=True)):
        assert reward(CAPTION, gold) == [reward.maximum]


def test_events_cost_few_calls():
    recall, precision = Recorder(), Recorder()
    captions = said("It grows.", "", "A square.")
    EventRecall(recall)(CAPTION, captions)
    assert [[request.kind for request in call] for call in recall.calls] == [["extract"], ["entail", "entail"]]
    EventPrecision(precision)(CAPTION, captions)
    assert [[request.kind for request in call] for call in precision.calls] == [["extract", "extract"], ["entail"]]


def test_a_reference_without_events_cannot_be_scored():
    with pytest.raises(JudgeUnavailable, match="reads no event out of the reference"):
        EventRecall(Says(events=[]))(CAPTION, said("It grows."))


class Forgetful(ExactJudge):
    """Has no reply to requests that hold a word."""

    def __init__(self, word):
        self.word = word

    def ask(self, requests):
        lost = [self.word in " ".join([request.text, *request.events]) for request in requests]
        return [JudgeUnavailable("forgotten") if gone else reply for gone, reply in zip(lost, super().ask(requests))]


@pytest.mark.parametrize("reward", [Grade, Verdict, EventPrecision])
def test_a_garbled_reply_is_never_a_score(reward):
    score, empty = reward(Garbled())(CAPTION, said("Score 0, or a Score 2", ""))
    assert math.isnan(score) and empty == 0


def test_without_the_events_of_the_reference_nothing_has_a_recall():
    with pytest.raises(JudgeUnavailable):
        EventRecall(Garbled())(CAPTION, said("it grows", ""))


def test_what_has_no_reply_is_unscored_alone():
    captions = said("The cross hides.", "It grows.", "")
    extracted = "the cross hides"  # how the exact judge puts the event
    for reward, word in ((Verdict, "The cross"), (EventRecall, "The cross"), (EventPrecision, "The cross"),
                         (EventPrecision, extracted)):  # fmt: skip
        scores = reward(Forgetful(word))(CAPTION if reward is not Verdict else MIX, captions)
        assert [math.isnan(score) for score in scores] == [True, False, False]


@pytest.mark.parametrize("answer", ["Solution", "**Thought process:**", ":", "...", "Let's think step by step.", "答案："])
def test_a_phrase_that_could_open_any_answer_is_nothing_and_asks_nobody(answer):
    judge = Recorder()
    assert Grade(judge)(DARK, said(answer)) == [0]
    assert EventPrecision(judge)(CAPTION, said(answer)) == [0]
    assert not any(judge.calls)


def test_each_completion_is_judged_by_itself():
    """Scoring a group equals scoring its members one by one, in any order."""
    captions = said("It grows.", "", "It hides, it spins.", "First the square moves left.")
    for reward in (EventRecall(ExactJudge()), EventPrecision(ExactJudge()), Verdict(ExactJudge())):
        one_by_one = [reward(CAPTION, (caption,))[0] for caption in captions]
        assert reward(CAPTION, captions) == one_by_one
        assert reward(CAPTION, captions[::-1]) == one_by_one[::-1]
