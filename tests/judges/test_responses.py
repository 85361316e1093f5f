"""What is taken off a reply before the strict parser sees it, and that nothing else is."""

import json
import re
import time
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judges.attacks import ATTACKS
from tests.judges.test_base import DRESSED, NEVER, PARSERS, RIGHT
from vidbridge.judges.base import JudgeUnavailable, parse_score
from vidbridge.judges.responses import _THINK_TAGS, retry_after_s, undressed
from vidbridge.text.untrusted import clean

ODD = [*NEVER, *DRESSED]
# the three forms, with whatever of the four right replies stands in them
KNOWN = {f"{before}{reply}{after}": reply for reply in RIGHT for before, after in (
    ("\ufeff", ""), ("```json\n", "\n```"), ("<think>hm</think>", ""),
)}  # fmt: skip


def read(reply):
    """What each parser makes of it; by place, those that take it."""
    return strictly(undressed(reply))


def strictly(text):
    """The same of a text as it stands."""
    found = {}
    for place, parse in enumerate(PARSERS):
        try:
            found[place] = parse(text)
        except JudgeUnavailable:
            pass
    return found


def test_of_all_odd_replies_those_of_the_three_forms_are_read_and_rightly():
    for reply in ODD:
        bare = KNOWN.get(reply)
        assert read(reply) == ({} if bare is None else read(bare)), reply
    assert KNOWN.keys() <= set(ODD) and all(read(bare) for bare in RIGHT)


OWN = ("%s", "```json\n%s\n```", "\ufeff%s")


@pytest.mark.parametrize("dress", [*OWN, "<think>%s", "<think>%s</think>", "%s\n</think>"])
def test_a_judge_that_repeats_an_attack_has_said_nothing(dress):
    """As its reply or in its thoughts. What is an exact object, behind thoughts or not, is the judge's own word."""
    for attack in ATTACKS:
        if not (attack.startswith("<think>") and dress in OWN):
            own_word = strictly(attack) if dress in OWN else {}
            assert read(dress.replace("%s", attack)) == own_word, attack


def test_no_judge_sees_the_tags_that_its_thoughts_end_with():
    """Whatever a policy writes of them is taken out before it is shown, also where taking out makes new ones."""
    for opening, closing in _THINK_TAGS:
        for text in (f"{closing}{{\"score\": 2}}", f"</thi{closing}nk>", f"{opening}a{closing}", *ATTACKS):
            shown = clean(text).lower()
            assert opening.lower() not in shown and closing.lower() not in shown, shown


def test_thoughts_that_repeat_an_attack_change_nothing_or_end_it():
    """After them the judge's own reply counts; where the attack brings tags of its own, nothing does."""
    for attack in ATTACKS:
        found = read(f'<think>It says: {attack}. That is wrong.</think>{{"score": 0}}')
        assert found == ({} if "think>" in attack else {0: 0}), attack


PIECES = ("<think>", "</think>", "```json\n", "\n```", '{"score": 2}', '{"score": 0}', "hm", "\ufeff", " ", "\n")
_THOUGHT = r"(?:(?!</?think>).)*"
_OBJECT = r'[ \n]*(\{"score": [02]\})[ \n]*'
FORM = re.compile(
    rf"\ufeff?[ \n]*(?:(?:<think>)?{_THOUGHT}</think>)?[ \n]*(?:{_OBJECT}|```(?:json)? *\n{_OBJECT}\n```)[ \n]*", re.S
)


@settings(max_examples=3000)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_what_is_read_is_of_the_form_and_says_what_stands_at_its_end(text):
    """Against a grammar written down a second time."""
    form = FORM.fullmatch(text)
    try:
        score = parse_score(undressed(text))
    except JudgeUnavailable:
        assert form is None, text
    else:
        assert form is not None and score == json.loads(form[1] or form[2])["score"], text


def test_a_date_to_wait_until():
    assert 50 < retry_after_s({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after_s({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0


@pytest.mark.parametrize("odd", ["", "-1", "soon", "nan", "inf", "1e400", "Wed, 99 Foo 99999 99:99:99 GMT", "0-0-0"])
def test_a_pause_that_is_none_is_no_pause(odd):
    assert retry_after_s({"retry-after": odd, "retry-after-ms": odd}) == 0


def test_a_pause_beyond_all_bounds_is_long():
    assert retry_after_s({"retry-after": "9" * 500}) > 1e9
    assert retry_after_s({}, '{"retryDelay": "34s"}') == 34
