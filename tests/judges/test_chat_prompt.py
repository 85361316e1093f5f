"""What a judge gets to see: nothing that a policy writes leaves its place."""

import inspect
import json
import re
import sys
import types
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.judges.attacks import ATTACKS, EMPTY
from tests.judges.builders import every_kind, grade
from vidbridge.judges import chat_prompt as chat_prompt_module
from vidbridge.judges.base import LABELS, MAX_EVENTS, JudgeRequest, parse_reply
from vidbridge.judges.chat_prompt import VERSION, chat_prompt, read_request
from vidbridge.shapes_world.exact_judge import ExactJudge
from vidbridge.text.untrusted import MAX_CHARS, clean, says_nothing

MARK = re.compile(r"[0-9a-f]{16}")
texts = st.one_of(
    st.text(), st.lists(st.sampled_from(ATTACKS), max_size=3).map("".join), st.text(alphabet='<|>[]{}"\\\n IN/')
)


def assert_quoted(request, prompt):
    """Seven lines, or five without question and reference; whatever was judged is JSON between two equal marks."""
    system, user = prompt.messages
    lines = user["content"].split("\n")
    known = 2 if request.kind in ("grade", "verdict") else 0
    assert len(lines) == known + 5
    label, mark, payload, end, last = lines[known:]
    assert label == "To be judged:" and last.startswith("Reply with JSON alone:")
    assert mark == end and MARK.fullmatch(mark)
    assert user["content"].count(mark) == 2 and system["content"].count(mark) == 1
    quoted = json.loads(payload)
    assert list(quoted) == (["text", "events"] if request.kind == "entail" else ["text"])
    for text in (quoted["text"], *quoted.get("events", ())):
        assert_harmless(text)


def assert_harmless(text):
    assert len(text) <= MAX_CHARS and "\n" not in text and "<" not in text and ">" not in text
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in text)
    assert not re.search(r"\[/?[A-Z_]{2,24}\]", text)


def requests_about(text):
    return [
        grade(text),
        JudgeRequest(kind="verdict", question="What?", reference="it grows", text=text),
        JudgeRequest(kind="extract", text=text),
        JudgeRequest(kind="entail", text=text, events=("it grows",)),
        JudgeRequest(kind="entail", text="it grows", events=(text, "it grows")),
    ]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda text: repr(text[:30]))
def test_no_attack_leaves_its_place(attack):
    for request in requests_about(attack):
        assert_quoted(request, chat_prompt(request))


@given(texts, texts, texts)
def test_nothing_leaves_its_place(text, question, reference):
    request = JudgeRequest(kind="grade", question=question, reference=reference, text=text)
    assert_quoted(request, chat_prompt(request))
    for request in requests_about(text):
        assert_quoted(request, chat_prompt(request))


def test_the_mark_is_another_each_time_and_never_one_of_the_text():
    marks = {chat_prompt(grade("it grows")).messages[1]["content"].split("\n")[3] for _ in range(50)}
    assert len(marks) == 50
    lines = chat_prompt(grade("it grows deadbeefdeadbeef"), mark="deadbeefdeadbeef").messages[1]["content"].split("\n")
    assert lines[3] == lines[5] != "deadbeefdeadbeef"


def test_the_reference_comes_first():
    content = chat_prompt(grade("an answer", reference="the truth")).messages[1]["content"]
    assert content.index("What happens?") < content.index("the truth") < content.index("an answer")


@given(texts, texts, texts, st.lists(texts, max_size=4))
def test_a_prompt_can_be_read_back(text, question, reference, events):
    for request in (
        JudgeRequest(kind="grade", question=question, reference=reference, text=text),
        JudgeRequest(kind="entail", text=text, events=tuple(events)),
    ):
        again = read_request(request.kind, chat_prompt(request).messages)
        assert again.text == clean(request.text) and again.events == tuple(map(clean, request.events))
        assert (again.question, again.reference) == (clean(request.question), clean(request.reference))


def test_what_is_no_prompt_of_ours_is_refused():
    with pytest.raises(ValueError):
        read_request("grade", [{"role": "user", "content": "a\nb\nc\nd\ne\nf"}])


def test_schema_and_opening_fit_what_the_parser_takes():
    for request, reply in zip(every_kind(), ExactJudge().ask(every_kind())):
        prompt = chat_prompt(request)
        (key,) = prompt.schema["properties"]
        assert prompt.schema["required"] == [key] and reply.startswith(prompt.opening)
        assert parse_reply(request, reply) is not None
        value, spec = json.loads(reply)[key], prompt.schema["properties"][key]
        if spec["type"] == "array":
            assert spec.get("minItems", 0) <= len(value) <= spec["maxItems"] <= MAX_EVENTS
            assert spec["items"].get("enum", list(LABELS)) == list(LABELS)
        else:
            assert value in spec.get("enum", [True, False])


@pytest.mark.parametrize("words", ["What stands between the two", "A part of a video was hidden", "true or false"])
def test_other_words_are_another_version_so_that_no_old_reply_is_taken(words, monkeypatch):
    """The module is read anew, as it is and with a word more in its warning, in a task and in a form."""
    source = inspect.getsource(chat_prompt_module)
    assert source.count(words) == 1

    def version_of(text):
        module = types.ModuleType("read_anew")
        monkeypatch.setitem(sys.modules, "read_anew", module)
        exec(text, vars(module))
        return module.VERSION

    assert version_of(source) == VERSION != version_of(source.replace(words, f"{words} now"))


@given(texts)
def test_cleaning_twice_is_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    "text, kept",
    [
        ("The square moves left, then it grows.", "The square moves left, then it grows."),
        ("Ein Hund läuft über die Straße.", "Ein Hund läuft über die Straße."),
        ("一个人打开门。", "一个人打开门。"),
        ("a man & a woman: 3/4 of 5%", "a man & a woman: 3/4 of 5%"),
        ("[a] (b) {c} [He walks]", "[a] (b) {c} [He walks]"),
        ("two\nlines\tand  blanks", "two lines and blanks"),
        ("5 < 7 and 7 > 5", "5 ‹ 7 and 7 › 5"),
        ("e\u0301", "é"),
    ],
)
def test_what_an_honest_answer_needs_is_kept(text, kept):
    assert clean(text) == kept


@pytest.mark.parametrize("answer", EMPTY, ids=repr)
def test_nothing_said_is_nothing(answer):
    assert says_nothing(answer)


@pytest.mark.parametrize(
    "answer",
    ["\u3164", "\u115f\uffa0", "\u2800", "\ufe0f", "\U000e0100"]  # letters and marks without a shape
    + ["As described in the reference.", "The event is:", "最终答案：", "คำตอบ:", "Правильный ответ:", "\\boxed{}"],
    ids=repr,
)
def test_what_looks_like_an_answer_is_nothing(answer):
    assert says_nothing(answer)


def test_shapeless_characters_hide_no_words():
    assert clean("gr\u034fo\ufe0fw\U000e0101s\u3164") == "grows"


@pytest.mark.parametrize(
    "answer",
    ["it grows", "B", "2", "yes", "right", "red", "No.", "nothing", "The solution is poured into a glass.", "答案是红色",
     "犬", "A judge enters the room.", "The answer is red", "Solution: it grows", "human beings walk"],
)  # fmt: skip
def test_a_short_answer_is_an_answer(answer):
    assert not says_nothing(answer)


def test_a_phrase_of_the_reference_is_an_answer():
    assert not says_nothing("Solution", reference="A chemical solution.")
    assert not says_nothing("the judge", reference="The judge of the race.")
    assert says_nothing("Solution", reference="A resolution.")


@pytest.mark.parametrize(
    "text",
    ["<" * 200_000, "<a" * 100_000, "[A" * 100_000, "a " * 100_000, "<a" * 16_000 + ">" * 16_000]
    + ["[IN" * 10_000 + "ST]" * 10_000],
)
def test_long_texts_are_cleaned_in_no_time(text):
    """Hours, if each layer of tags took a pass of its own."""
    assert_harmless(clean(text))
