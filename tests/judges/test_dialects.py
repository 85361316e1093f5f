"""The client against servers that say no to a part of what it asks, and reply in ways of their own. Real HTTP."""

import json
import re
import time

import pytest

from tests.composing import composed
from tests.judges.builders import every_kind, grade, openai_judge
from tests.judges.dialects import ELSEWHERE, REFUSES, Dialect, choice, elsewhere, openai_error, speaking, thinks
from vidbridge.build.common import build_judge
from vidbridge.errors import ConfigError
from vidbridge.judges import dialect as module
from vidbridge.judges import pacing
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.judges.openai_chat import OpenAIChat, address
from vidbridge.judges.reply_cache import ReplyCache
from vidbridge.runtime import launch
from vidbridge.shapes_world.exact_judge import ExactJudge

EXACT = ExactJudge().ask(every_kind())


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(pacing, "LONGEST_WAIT_S", 0.05)


def usual(call):
    """A call in the words of module.Dialect."""
    return {
        "limit": next(name for name in ("max_tokens", "max_completion_tokens") if name in call.body),
        "form": call.form or "text",
        "temperature": "temperature" in call.body,
        "system": call.body["messages"][0]["role"] == "system",
    }


@pytest.mark.parametrize("name", REFUSES)
def test_what_a_server_refuses_is_asked_as_it_takes_it(name):
    refuses, changes = REFUSES[name]
    server = Dialect(refuses)
    with speaking(server) as url:
        judge = openai_judge(f"{url}/v1", max_concurrent=1)
        assert judge.ask(every_kind()) == EXACT
        refused = len(server.calls) - len(server.taken)
        assert judge.ask([grade("it spins")]) == ExactJudge().ask([grade("it spins")])
    # it changes what was refused and nothing else, one thing a refusal, and asks so from then on
    plain = {"limit": "max_tokens", "form": "json_schema", "temperature": True, "system": True}
    assert usual(server.taken[-1]) == plain | changes
    steps = {"text": 2}  # over json_object
    assert refused == sum(steps.get(value, 1) for value in changes.values())
    assert len(server.calls) - len(server.taken) == refused
    assert all(call.body.get("temperature", 0.0) == 0.0 for call, _ in server.calls)
    assert {call.body.get("max_tokens") or call.body["max_completion_tokens"] for call, _ in server.calls} == {512}


def test_a_server_that_takes_all_is_sent_the_schema_and_nothing_is_noted():
    server = Dialect()
    with speaking(server) as url:
        judge = openai_judge(f"{url}/v1")
        assert judge.ask(every_kind()) == EXACT
    assert {call.form for call in server.taken} == {"json_schema"} and judge.notes == ""


def test_many_at_once_find_it_out_once():
    """40 calls come before the first is refused: each is refused once, one looks on, all others ask as it found."""
    server = Dialect(thinks, together=40)
    requests = [grade(f"it moves left {number} times") for number in range(40)]
    with speaking(server) as url:
        judge = openai_judge(f"{url}/v1", max_concurrent=40, timeout_s=60, deadline_s=60)
        assert judge.ask(requests) == ['{"score": 2}'] * 40
    assert len(server.taken) == 40
    assert server.statuses.count(400) == 41  # all of them for max_tokens, and one for the temperature


def test_a_refusal_that_no_words_mend_is_told_with_both_and_not_remembered():
    """A prompt too long is refused by a message that names max_tokens: others must not be asked otherwise for it."""

    def too_long(call):
        if "grows" in call.body["messages"][-1]["content"].split("To be judged:")[1]:
            return 400, openai_error("'max_tokens' or 'max_completion_tokens' is too large: 512", "max_tokens")

    server = Dialect(too_long)
    with speaking(server) as url:
        judge = openai_judge(f"{url}/v1", max_concurrent=1)
        (reply,) = judge.ask([grade("it grows")])
        assert judge.ask([grade("it moves left")]) == ['{"score": 2}']
    assert isinstance(reply, JudgeUnavailable) and str(reply).count("is too large: 512") == 2
    assert server.statuses == [400, 400, 200] and "max_tokens" in server.taken[0].body


@pytest.mark.parametrize("words", [{}, {"detail": []}, {"error": None}, [], "", "no", {"error": {"message": "no"}}])
def test_a_refusal_that_names_nothing_is_asked_once(words):
    server = Dialect(lambda call: (400, words))
    with speaking(server) as url:
        (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert "Error code: 400" in str(reply) and server.statuses == [400]


def test_the_words_of_a_refusal_are_shown_wherever_they_stand():
    for words in ({"detail": "no such model: judge"}, {"error": "no such model: judge"}, "no such model: judge"):
        with speaking(Dialect(lambda call, words=words: (400, words))) as url:
            (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
        assert "Error code: 400" in str(reply) and "no such model: judge" in str(reply)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_address_with_and_without_its_v1(name, ending):
    server = Dialect(elsewhere(ELSEWHERE[name]))
    with speaking(server) as url:
        judge = openai_judge(url + ending, max_concurrent=1)
        assert judge.ask(every_kind()) == EXACT
    assert len(server.calls) - len(server.taken) == (0 if "v1" in ending else 1)


def test_an_address_that_is_wrong_altogether_is_told_with_what_was_there():
    with speaking(Dialect(lambda call: (404, {"detail": "Not Found"}))) as url:
        (reply,) = openai_judge(f"{url}/api").ask([grade("it moves left")])
        (versioned,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert str(versioned) == 'Error code: 404 - {"detail": "Not Found"}'
    assert str(reply) == f"{versioned}; asked in other words too, at last: {versioned}"


def test_a_version_in_the_query_goes_with_every_request_and_the_key_where_azure_reads_it(monkeypatch):
    monkeypatch.setenv("VIDBRIDGE_CANARY", "canary-5d1e")

    def azure(call):
        where = call.path, call.query, call.headers.get("api-key")
        right = "/openai/deployments/judge/chat/completions", {"api-version": "2024-10-21"}, "canary-5d1e"
        return None if where == right else (404, {"error": {"message": f"nothing at {where}"}})

    with speaking(Dialect(azure)) as url:
        base_url = f"{url}/openai/deployments/judge?api-version=2024-10-21"
        judge = openai_judge(base_url, api_key_env="VIDBRIDGE_CANARY")
        assert judge.ask(every_kind()) == EXACT
    assert "canary" not in judge.where


@pytest.mark.parametrize("query", ["key=abc", "api_key=abc", "api-version=1&token=abc", "sig=abc"])
def test_a_secret_in_the_address_is_refused_and_not_shown(query):
    with pytest.raises(ConfigError, match="would go on record: give the key by api_key_env") as caught:
        address(f"https://host/v1?{query}")
    assert "abc" not in str(caught.value)


def test_further_fields_go_with_every_request_and_into_the_key_of_the_cache():
    server, cache = Dialect(), ReplyCache()
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "seed": 1}
    with speaking(server) as url:
        for extra_body in (None, {}, extra, extra):
            openai_judge(f"{url}/v1", cache=cache, extra_body=extra_body).ask([grade("it moves left")])
    plain, with_extra = server.taken  # the second and the fourth came from the cache
    assert with_extra.body["chat_template_kwargs"] == {"enable_thinking": False} and with_extra.body["seed"] == 1
    assert not plain.body.keys() & extra.keys()


@pytest.mark.parametrize("name", ["messages", "temperature", "max_completion_tokens", "stream", "response_format", "n"])
def test_further_fields_are_not_those_that_are_sent_anyway(name):
    with pytest.raises(ConfigError, match=f"extra_body must not give {name}"):
        OpenAIChat(base_url="http://here/v1", model="m", extra_body={name: 1})


def test_further_fields_come_from_the_command_line():
    told = "judge.answers.extra_body={chat_template_kwargs: {enable_thinking: false}}"
    judge = build_judge(launch.to_dataclasses(composed("judge=openai", told)))
    assert judge.models["grade"].extra_body == {"chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(ConfigError, match="judge.answers.extra_body must be of type .*Mapping"):
        build_judge(launch.to_dataclasses(composed("judge=openai", "judge.answers.extra_body=[1]")))


def test_the_key_of_the_cache_knows_what_changes_a_reply_and_nothing_else():
    """Who asks for 0 does not find replies at the temperature of the server; another word for the limit is nothing."""
    cache = ReplyCache()

    def calls(refuses):
        server = Dialect(refuses)
        with speaking(server) as url:
            judge = openai_judge(f"{url}/v1", cache=cache)
            assert judge.ask(every_kind()[:1]) == EXACT[:1]
            assert judge.ask(every_kind()[:1]) == EXACT[:1]
        return len(server.taken)

    renamed, no_temperature = REFUSES["renamed_in_chinese"][0], REFUSES["refused_with_200"][0]
    assert calls(no_temperature) == 1 and len(cache) == 1  # asked once: the second time it was known
    assert calls(lambda call: None) == 1 and len(cache) == 2  # but not to who asks for 0
    assert calls(renamed) == 0
    assert calls(lambda call: None) == 0


def test_what_is_not_asked_as_configured_is_noted():
    with speaking(Dialect(REFUSES["everything"][0])) as url:
        judge = openai_judge(f"{url}/v1")
        judge.ask([grade("it grows")])
        told = "does not take all that was asked for; it is asked with form: text, temperature: False, system: False"
        assert judge.notes == f"exact at {url}/v1 {told}"


def message(**fields):
    return lambda text: choice(None, **fields)


def parts(*kinds):
    return lambda text: choice([{"type": kind, kind if kind != "output_text" else "text": text} for kind in kinds])


READ = {
    "tail of blanks": lambda text: choice(text + "\n" * 200),
    "byte order mark": lambda text: choice("\ufeff" + text),
    "fence": lambda text: choice(f"```json\n{text}\n```"),
    "fence without a name": lambda text: choice(f"```\n{text}\n```\n"),
    "thoughts": lambda text: choice(f"<think>\nThe answer matches.\n</think>\n\n{text}"),
    "no thoughts": lambda text: choice(f"<think>\n\n</think>\n\n{text}"),
    "thoughts that the template opens": lambda text: choice(f"The answer matches.\n</think>\n\n{text}"),
    "thoughts that weigh other replies": lambda text: choice(f'<think>{{"score": 0}} or {{"score": 1}}?</think>{text}'),
    "thoughts of another make": lambda text: choice(f"[THINK]The answer matches.[/THINK]{text}"),
    "mark, thoughts and fence": lambda text: choice(f"\ufeff<think>hm</think>\n```json\n{text}\n```"),
    "parts": parts("text"),
    "parts of another name": parts("output_text"),
    "parts with thoughts": lambda text: choice(
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    ),
    "cut into parts": lambda text: choice([{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]),
    "thoughts in a field": lambda text: choice(text, reasoning_content='{"score": 0}'),
    "end not told": lambda text: choice(text, finish=None),
    "blanks up to the limit": lambda text: choice(text + " " * 99, finish="length"),
}
UNREAD = {  # and what the message must say
    "thoughts alone": (message(reasoning_content="{}"), "finish_reason stop; there is some in reasoning_content"),
    "thoughts in the new field": (message(reasoning='{"score": 2}'), "there is some in reasoning, which is not"),
    "thoughts cut": (message(reasoning_content="Let me", finish="length"), "finish_reason length; .*max_reply_tokens"),
    "nothing": (message(), r"no text in the response \(finish_reason stop\)"),
    "blank": (lambda text: choice(" \n"), r"no text in the response \(finish_reason stop\)"),
    "refusal": (message(refusal="I cannot help."), "the model refuses: I cannot help."),
    "refusal and text": (lambda text: choice(text, refusal="I cannot help."), "the model refuses"),
    "tool": (message(tool_calls=[{"id": "1", "type": "function"}], finish="tool_calls"), "it calls a tool"),
    "filter": (lambda text: choice(text, finish="content_filter"), "content filter"),
    "picture": (lambda text: choice([{"type": "image_url"}, {"type": "text", "text": text}]), "other parts than text"),
    "no choices": (lambda text: {"choices": []}, "0 choices"),
    "choices are null": (lambda text: {"choices": None}, "no choices"),
    "two choices": (lambda text: {"choices": [*choice(text)["choices"], *choice(text)["choices"]]}, "2 choices"),
    "error with 200": (lambda text: {"error": {"message": "out of memory", "code": 500}}, "200 and an error.*memory"),
    "stream": (lambda text: f"data: {json.dumps(choice(text))}\n\ndata: [DONE]\n\n", "answers with a stream"),
    "other letters": (lambda text: json.dumps(choice(text)).replace('"m"', '"é"').encode("latin-1"), "not JSON in UTF"),
    "cut": (lambda text: choice(text[:5], finish="length"), "is not JSON: .*finish_reason length.*max_reply_tokens"),
    "cut in the thoughts": (lambda text: choice(f"<think>as '</think>{text}", finish="length"), "finish_reason length"),
    "prose": (lambda text: choice(f"Sure! {text}"), "is not JSON"),
    "thoughts that never end": (lambda text: choice(f"<think>{text}"), "is not JSON"),
    "thoughts twice": (lambda text: choice(f"<think>a</think><think>b</think>{text}"), "is not JSON"),
    "thoughts that end twice": (lambda text: choice(f"<think>a</think>{text}</think>{text}"), "is not JSON"),
    "thoughts in the middle": (lambda text: choice(f"{text}<think>a</think>{text}"), "is not JSON"),
    "thoughts after it": (lambda text: choice(f"{text}<think>a</think>"), "is not JSON"),
    "two objects": (lambda text: choice(f"<think>a</think>{text}\n{text}"), "is not JSON"),
    "two fences": (lambda text: choice(f"```json\n{text}\n```\n```json\n{text}\n```"), "is not JSON"),
    "fence in prose": (lambda text: choice(f"Here:\n```json\n{text}\n```"), "is not JSON"),
    "fence of another make": (lambda text: choice(f"```python\n{text}\n```"), "is not JSON"),
    "two parts": (parts("text", "text"), "is not JSON"),
}


@pytest.mark.parametrize("name", READ)
def test_the_object_asked_for_is_read_out_of(name):
    server = Dialect(says=READ[name])
    server.content_type = "application/json; charset=utf-8"
    with speaking(server) as url:
        assert openai_judge(f"{url}/v1").ask(every_kind()) == EXACT


@pytest.mark.parametrize("name", UNREAD)
def test_no_reply_is_read_out_of(name, monkeypatch):
    says, told = UNREAD[name]
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 100.0)  # beyond the deadline: one attempt
    monkeypatch.setattr(pacing, "LONGEST_WAIT_S", 100.0)
    server = Dialect(says=says, content_type="text/event-stream" if name == "stream" else "application/json")
    with speaking(server) as url:
        (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert isinstance(reply, JudgeUnavailable) and re.search(told, str(reply)), str(reply)
    assert len(server.calls) == 1


def test_a_server_that_only_streams_is_refused_by_name():
    server = Dialect(lambda call: (400, openai_error("This model only supports stream mode, please enable it")))
    with speaking(server) as url:
        (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert "only supports stream mode" in str(reply) and "vidbridge asks for whole replies" in str(reply)
    assert server.statuses == [400]


def test_a_server_that_wants_thinking_off_is_answered_with_the_key_that_does_it():
    told = "parameter.enable_thinking must be set to false for non-streaming calls"
    with speaking(Dialect(lambda call: (400, openai_error(told)))) as url:
        (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert "see judge.answers.extra_body" in str(reply)


def test_the_page_of_a_gateway_is_shown_without_its_markup(monkeypatch):
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 100.0)
    monkeypatch.setattr(pacing, "LONGEST_WAIT_S", 100.0)
    page = "<!DOCTYPE html>\n<html><head><style>body {color: red}</style><title>502</title></head><h1>Bad gateway</h1>"
    with speaking(Dialect(lambda call: (502, page))) as url:
        (reply,) = openai_judge(f"{url}/v1").ask([grade("it moves left")])
    assert str(reply) == "Error code: 502 - 502 Bad gateway"


@pytest.mark.parametrize(
    "headers, words",
    [
        ({"Retry-After": "0.4"}, ""),
        ({"Retry-After": "400ms"}, ""),
        ({"retry-after-ms": "400"}, ""),
        ({}, "Rate limit reached. Please try again in 400ms. Visit .."),
    ],
)
def test_the_pause_that_a_server_asks_for_is_kept(headers, words):
    times = []

    def busy_once(call):
        times.append(time.monotonic())
        return (429, openai_error(words or "slow down")) if len(times) == 1 else None

    with speaking(Dialect(busy_once, headers=headers)) as url:
        assert openai_judge(f"{url}/v1").ask([grade("it moves left")]) == ['{"score": 2}']
    assert times[1] - times[0] >= 0.4


def test_every_ladder_begins_with_what_is_usual():
    for name, (_, choices) in module.FALLBACKS.items():
        assert choices[0] == getattr(module.Dialect(), name) and len(set(choices)) == len(choices)
