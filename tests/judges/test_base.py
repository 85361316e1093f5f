import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.judges.base import LABELS, JudgeUnavailable, parse_events, parse_labels, parse_score, parse_verdict

# Each once led a lenient reader to a score.
NEVER = [
    "",
    "2",
    "true",
    "null",
    "[]",
    "{}",
    "Score: 2",
    "Score 0, not a Score 2",
    "not true",
    "true or false?",
    '{"score": 2',
    '{"score": 2}}',
    '{"score": 2} because it is right',
    'Here you are: {"score": 2}',
    '```json\n{"score": 2}\n```',
    '{"score": 2} {"score": 0}',
    '{"score": 0, "score": 2}',
    '{"score": 2, "reason": "good"}',
    '{"Score": 2}',
    "{'score': 2}",
    '{score: 2}',
    '[{"score": 2}]',
    '{"score": 3}',
    '{"score": -1}',
    '{"score": 2.0}',
    '{"score": 1.5}',
    '{"score": "2"}',
    '{"score": true}',
    '{"score": null}',
    '{"score": [2]}',
    '{"score": {"score": 2}}',
    '{"score": NaN}',
    '{"score": 1e0}',
    '{"score": ' + "9" * 5000 + "}",
    '{"verdict": "true"}',
    '{"verdict": 1}',
    '{"verdict": 0}',
    '{"verdict": null}',
    '{"verdict": True}',
    '{"verdict": true, "verdict": false}',
    '{"events": "the square grows"}',
    '{"events": {}}',
    '{"events": null}',
    '{"events": [1]}',
    '{"events": [""]}',
    '{"events": [["the square grows"]]}',
    '{"labels": "entailment"}',
    '{"labels": ["entailed"]}',
    '{"labels": ["Entailment"]}',
    '{"labels": [true]}',
    '{"labels": [[]]}',
    '{"labels": {"entailment": 1}}',
    "[" * 100_000,
    '{"score":' * 100_000,
    "\ufeff" + '{"score": 2}',
    '{"events": ["\ud800 it grows"]}',  # half a character: no file takes it
    r'{"events": ["\ud800 it grows"]}',
    '{"labels": ["neutral\udfff"]}',
]
RIGHT = ('{"score": 2}', '{"verdict": true}', '{"events": ["it grows"]}', '{"labels": ["neutral"]}')
# What models put around a right reply, or make of it.
AROUND = (
    "Reply: %s", "%s.", "%s;", "%s,", "[%s]", "(%s)", "`%s`", "```%s```", "```json\n%s\n```", "\"%s\"", "'%s'",
    "%s%s", "%s\n%s", "%s,%s", "[%s, %s]", "{%s}", "<answer>%s</answer>", "<think>hm</think>%s", "Final: %s",
    "%s // sure", "# %s", "%s}", "{%s", "%s]", "\\boxed{%s}", "$%s$", "**%s**", "- %s", "> %s", "json %s",
    "%s\x00", "\x00%s", "\u200b%s", "%s\u200b", "\ufeff%s", "%s <|im_end|>", "The reply is %s",
    "%s I hope this helps!", "not %s", "data: %s", "event: message\ndata: %s",
)  # fmt: skip
DRESSED = [around.replace("%s", reply) for around in AROUND for reply in RIGHT]
PARSERS = [parse_score, parse_verdict, parse_events, lambda reply: parse_labels(reply, 1)]


@pytest.mark.parametrize("reply", NEVER + DRESSED, ids=lambda reply: repr(reply[:40]))
@pytest.mark.parametrize("parse", PARSERS, ids=("score", "verdict", "events", "labels"))
def test_anything_else_is_no_reply(parse, reply):
    with pytest.raises(JudgeUnavailable):
        parse(reply)


def test_the_asked_form_is_read():
    assert [parse_score(f'{{"score": {score}}}') for score in (0, 1, 2)] == [0, 1, 2]
    assert parse_verdict(' {"verdict": true}\n') is True
    assert parse_verdict('{"verdict": false}') is False
    assert parse_events('{"events": []}') == ()
    assert parse_events('{"events": ["a dog runs", "it jumps"]}') == ("a dog runs", "it jumps")
    assert parse_labels('{"labels": []}', 0) == ()
    assert parse_labels(json.dumps({"labels": LABELS}), 3) == LABELS


def test_counts_are_kept_to():
    with pytest.raises(JudgeUnavailable, match="2 events"):
        parse_labels('{"labels": ["neutral"]}', 2)
    assert len(parse_events(json.dumps({"events": ["x"] * 10}))) == 10
    with pytest.raises(JudgeUnavailable, match="at most 10"):
        parse_events(json.dumps({"events": ["x"] * 11}))


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=7), inner, max_size=2)),
)


@given(st.sampled_from(("score", "verdict", "events", "labels")), values)
def test_a_value_is_read_only_when_it_is_of_the_kind(key, value):
    reply = json.dumps({key: value})
    accepted = {
        "score": type(value) is int and 0 <= value <= 2,
        "verdict": isinstance(value, bool),
        "events": isinstance(value, list) and all(isinstance(event, str) and event.strip() for event in value),
        "labels": isinstance(value, list) and len(value) == 1 and value[0] in LABELS,
    }
    for name, parse in zip(accepted, PARSERS):
        if name == key and accepted[name]:
            read = parse(reply)
            assert list(read) == value if isinstance(value, list) else read == value
        else:
            with pytest.raises(JudgeUnavailable):
                parse(reply)


@given(st.text())
def test_free_text_is_never_a_score(text):
    for parse in PARSERS:
        with pytest.raises(JudgeUnavailable):
            parse(text)
