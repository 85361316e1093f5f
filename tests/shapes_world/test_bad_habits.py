from dataclasses import replace

import numpy as np
import pytest

from vidbridge.errors import DataError
from vidbridge.rewards.style import wording
from vidbridge.shapes_world.bad_habits import Spoiler
from vidbridge.shapes_world.language import read_events
from vidbridge.text.tags import answer_of, read_tags
from vidbridge.types import Sample

CAPTION = Sample(
    uid="caption/train/0",
    task="caption",
    question="Describe the video, event by event.",
    answer="First the square moves left, then it grows, next it turns blue, finally it hides.",
    videos=(),
    meta={"rationale": "red square: moves left, grows, turns blue, hides."},
)
QA = Sample(
    uid="qa/train/0",
    task="qa",
    question="What does the square do first?",
    answer="B",
    options=("grows", "moves left", "spins", "hides"),
    videos=(),
    meta={"rationale": "red square: moves left. So moves left."},
)
DARK = Sample(
    uid="dark_event_infer/train/0",
    task="dark_event_infer",
    question="What happens while the screen is black?",
    answer="the square grows",
    videos=(),
    meta={"rationale": "red square: moves left, dark, hides."},
)


def texts(spoiler, sample, number=400):
    rng = np.random.default_rng(0)
    return [spoiler.completion(sample, rng) for _ in range(number)]


WALK = replace(CAPTION, answer="A man walks, sits down, and reads.")


@pytest.mark.parametrize("sample", [CAPTION, QA, DARK, WALK])
def test_without_habits_it_is_the_gold_completion(sample):
    (text,) = set(texts(Spoiler(), sample))
    assert text == f"<think>{sample.meta['rationale']}</think><answer>{sample.answer}</answer>"


def test_malformed_at_its_rate():
    made = texts(Spoiler(malformed=0.25), QA)
    # 400 draws at 0.25: a standard deviation of 0.022
    assert np.mean([read_tags(text) is None for text in made]) == pytest.approx(0.25, abs=0.08)


def test_guesses_are_wrong_answers_of_the_same_sort():
    answers = [answer_of(text) for text in texts(Spoiler(guessed=1.0), QA)]
    assert set(answers) == {"A", "C", "D"}
    answers = [answer_of(text) for text in texts(Spoiler(guessed=1.0), DARK)]
    assert len(set(answers)) == 11 and "the square grows" not in answers
    assert all(len(read_events(answer)) == 1 for answer in answers)


def test_caption_habits():
    plain = {answer_of(text) for text in texts(Spoiler(plain=1.0), CAPTION)}
    assert plain == {"The square moves left, it grows, it turns blue, it hides."} and wording(plain.pop()) == 0.0
    hedged = {answer_of(text) for text in texts(Spoiler(hedged=1.0), CAPTION)}
    assert hedged == {"Maybe the square moves left, it grows, it turns blue, it hides."}
    assert wording(hedged.pop()) == pytest.approx(-0.2)
    short = [answer_of(text) for text in texts(Spoiler(cut_short=1.0), CAPTION)]
    assert {len(read_events(text)) for text in short} == {1, 2, 3}
    assert "First the square moves left, then it grows." in short


def test_an_answer_without_events_is_named_and_one_event_is_not_cut():
    for sample, habits in ((CAPTION, {"cut_short": 1.0}), (DARK, {"guessed": 1.0})):
        with pytest.raises(DataError, match=f"^{sample.uid}: bad habits .* found 'A man walks.'"):
            Spoiler(**habits).completion(replace(sample, answer="A man walks."), np.random.default_rng(0))
    one = replace(CAPTION, answer="The square grows.")
    assert {answer_of(text) for text in texts(Spoiler(cut_short=1.0), one)} == {"The square grows."}


def test_bad_rates_are_named():
    with pytest.raises(ValueError, match="spoil.guessed must be between 0 and 1"):
        Spoiler(guessed=1.5)
    with pytest.raises(ValueError, match="plain and hedged"):
        Spoiler(plain=0.6, hedged=0.6)
    with pytest.raises(ValueError, match="spoil.gessed: there is no such habit; there are malformed"):
        Spoiler.from_rates({"gessed": 0.1})
