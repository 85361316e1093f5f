"""The client against a real server in this process: what it sends, what it waits for, what it gives up."""

import socket
import threading
import time
from email.utils import formatdate

import pytest

from experiments.bench.faulty_server import FAULTS, Script, at_random, running
from tests.judges.builders import every_kind, grade, openai_judge
from vidbridge.errors import ConfigError, JudgeLost
from vidbridge.judges import pacing as module
from vidbridge.judges.base import JudgeUnavailable, parse_score
from vidbridge.judges.openai_chat import OpenAIChat
from vidbridge.judges.pacing import Pace
from vidbridge.runtime import collectives
from vidbridge.shapes_world import serve
from vidbridge.shapes_world.exact_judge import ExactJudge


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.05)


def first(*faults):
    """The first calls fail like this, the others are answered."""
    return lambda number: faults[number] if number < len(faults) else None


def always(fault):
    return lambda number: fault


def test_replies_are_those_of_the_exact_judge():
    with running(Script()) as server:
        judge = openai_judge(server.url)
        assert judge.ask(every_kind()) == ExactJudge().ask(every_kind())
        assert judge.ask([]) == []


def test_the_key_comes_from_the_environment_and_goes_into_the_header_alone(monkeypatch):
    monkeypatch.setenv("VIDBRIDGE_CANARY", "canary-5d1e")
    script = Script(fault=first("status_401"))
    with running(script) as server:
        judge = openai_judge(server.url, api_key_env="VIDBRIDGE_CANARY")
        (refused,) = judge.ask([grade("it grows")])
        assert judge.ask([grade("it moves left")]) == ['{"score": 2}']
    assert {headers["authorization"] for headers in script.headers_seen} == {"Bearer canary-5d1e"}
    # a server that repeats the key does not get it into a message
    assert "401" in str(refused) and "Bearer ***" in str(refused)
    chat = judge.models["grade"]
    assert "canary" not in f"{refused} {judge.trouble} {chat.where} {chat.identity} {judge.metrics()}"


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("VIDBRIDGE_CANARY", raising=False)
    with pytest.raises(ConfigError, match="VIDBRIDGE_CANARY, which is not set"):
        openai_judge("http://127.0.0.1:1/v1", api_key_env="VIDBRIDGE_CANARY")


@pytest.mark.parametrize("key", ["sk-1\n", "sk 1", "schlüssel"])
def test_a_key_that_fits_into_no_header_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("VIDBRIDGE_CANARY", key)
    with pytest.raises(ConfigError, match="the key in VIDBRIDGE_CANARY has blanks") as caught:
        openai_judge("http://127.0.0.1:1/v1", api_key_env="VIDBRIDGE_CANARY")
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "https://me:secret@host/v1", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="base_url"):
        openai_judge(url)


@pytest.mark.parametrize("settings", [{"deadline_s": 0}, {"max_concurrent": 0}, {"requests_per_minute": 0}])
def test_limits_must_be_positive(settings):
    with pytest.raises(ConfigError, match="must be positive"):
        openai_judge("http://127.0.0.1:1/v1", **settings)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_asked_again(fault):
    script = Script(fault=first(fault, fault))
    with running(script) as server:
        assert openai_judge(server.url).ask([grade("it moves left")]) == ['{"score": 2}']
    assert len(script.times) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_ends_at_the_deadline_without_a_score(fault):
    with running(Script(fault=always(fault))) as server:
        (reply,) = openai_judge(server.url, deadline_s=0.2).ask([grade("it moves left")])
    assert isinstance(reply, JudgeUnavailable)
    with pytest.raises(JudgeUnavailable):
        parse_score(reply)


def test_a_page_in_place_of_a_reply_is_shown():
    """Without its /v1 an address often leads to a page for people."""
    with running(Script(fault=always("html"))) as server:
        (reply,) = openai_judge(server.url, deadline_s=0.2).ask([grade("it moves left")])
    assert str(reply) == "a page in place of a reply, is base_url right? Bad gateway"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_is_refused_for_good_is_asked_once(status):
    script = Script(fault=always(f"status_{status}"))
    with running(script) as server:
        (reply,) = openai_judge(server.url).ask([grade("it moves left")])
    assert str(status) in str(reply) and len(script.times) == 1


def test_a_server_that_hangs_is_left_at_the_timeout():
    script = Script(fault=first("hang"))
    with running(script) as server:
        assert openai_judge(server.url, timeout_s=0.5).ask([grade("it moves left")]) == ['{"score": 2}']
    assert len(script.times) >= 2


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        judge = openai_judge(url, deadline_s=0.2)
        (reply,) = judge.ask([grade("it moves left")])
    assert isinstance(reply, JudgeUnavailable)
    assert judge.trouble.startswith(f"exact at {url}: ")


def test_retry_after_is_kept():
    script = Script(fault=first("status_429"), retry_after="0.4")
    with running(script) as server:
        assert openai_judge(server.url).ask([grade("it moves left")]) == ['{"score": 2}']
    assert script.times[1] - script.times[0] >= 0.4


def test_retry_after_may_be_a_date():
    then = int(time.time()) + 2
    script = Script(fault=first("status_503"), retry_after=formatdate(then, usegmt=True))
    with running(script) as server:
        assert openai_judge(server.url).ask([grade("it moves left")]) == ['{"score": 2}']
    assert time.time() >= then and len(script.times) == 2


def test_retry_after_beyond_the_deadline_ends_at_once():
    script = Script(fault=always("status_503"), retry_after="3600")
    with running(script) as server:
        (reply,) = openai_judge(server.url).ask([grade("it moves left")])
    assert "503" in str(reply) and len(script.times) == 1


def test_an_outage_is_waited_for():
    """Nobody listens for half a second; then somebody does, at the same port."""
    with running(Script()) as server:
        port = server.server_address[1]
    replies = []
    judge = openai_judge(server.url)
    asking = threading.Thread(target=lambda: replies.extend(judge.ask(every_kind())))
    asking.start()
    time.sleep(0.5)
    with running(Script(), port):
        asking.join(timeout=10)
    assert replies == ExactJudge().ask(every_kind())


def test_no_more_than_max_concurrent_at_a_time():
    """Each call takes 50 ms; the server sees no fifth one within 50 ms of a first."""
    script = Script(latency_s=0.05)
    with running(script) as server:
        replies = openai_judge(server.url, max_concurrent=4).ask([grade(f"it moves left {n} times") for n in range(12)])
    assert len(replies) == len(script.times) == 12
    assert all(later - sooner >= 0.045 for sooner, later in zip(script.times, script.times[4:]))


def test_time_in_the_queue_is_no_part_of_the_deadline():
    """20 calls of 100 ms one after another, 2 s in all, with a deadline of 1.5 s each."""
    with running(Script(latency_s=0.1)) as server:
        judge = openai_judge(server.url, max_concurrent=1, deadline_s=1.5)
        replies = judge.ask([grade(f"it moves left {n} times") for n in range(20)])
    assert replies == ['{"score": 2}'] * 20


def test_the_request_rate_is_kept():
    script = Script()
    with running(script) as server:
        openai_judge(server.url, requests_per_minute=600).ask([grade(f"it moves left {n} times") for n in range(6)])
    assert script.times[-1] - script.times[0] >= 0.25  # 0.5 s, but for what the first one took to get there


def test_the_token_rate_is_kept():
    pace = Pace(600.0)
    # 10 tokens a second: 100 of them keep the next waiting for 10 seconds
    assert [pace.reserve(100, now=0.0), pace.reserve(5, now=4.0), pace.reserve(5, now=10.2)] == pytest.approx(
        [0.0, 6.0, 0.3]
    )


def test_tokens_that_were_not_used_are_free_again(monkeypatch):
    """100 tokens a second: the 600 and more that are reserved take seconds, the 20 that the server counts 0.2."""
    completion = serve.completion
    monkeypatch.setattr(serve, "completion", lambda *given: {**completion(*given), "usage": {"total_tokens": 20}})
    with running(Script()) as server:
        judge = openai_judge(server.url, tokens_per_minute=6000)
        started = time.monotonic()
        assert judge.ask([grade("it moves left")]) == ['{"score": 2}']
        taken = judge.models["grade"]._tokens.reserve(0, now=started) - (time.monotonic() - started)
    assert taken <= 0.2


def test_ranks_share_the_limits(monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    chat = OpenAIChat(base_url="http://here/v1", model="m", max_concurrent=5, requests_per_minute=30)
    assert (chat.max_concurrent, chat._requests.per_minute, chat._tokens.per_minute) == (2, 15, None)


def test_a_third_of_all_calls_fails_and_no_score_is_wrong():
    requests = [grade(f"it {verb} {n} times") for n in range(30) for verb in ("moves left", "moves up", "grows")]
    with running(Script(fault=at_random(0.3))) as server:
        replies = openai_judge(server.url).ask(requests)
    assert replies == ExactJudge().ask(requests)


def test_the_run_stops_when_too_much_goes_unscored():
    script = Script(fault=lambda number: "status_400" if number >= 8 else None)
    with running(script) as server:
        judge = openai_judge(server.url, judge={"window": 8, "max_unscored_frac": 0.5})
        assert judge.ask([grade(f"it moves left {n} times") for n in range(8)]) == ['{"score": 2}'] * 8
        unscored = judge.ask([grade(f"it moves up {n} times") for n in range(4)])  # 4 of the last 8: still allowed
        assert all(isinstance(reply, JudgeUnavailable) for reply in unscored)
        with pytest.raises(JudgeLost, match=f"5 of the last 8 .*Last: exact at {server.url}: Error code: 400"):
            judge.ask([grade("it grows")])


def test_metrics_count_since_the_last_time():
    with running(Script(fault=lambda number: "status_400" if number == 1 else None, latency_s=0.02)) as server:
        judge = openai_judge(server.url, max_concurrent=1)
        judge.ask([grade("it moves left"), grade("it grows"), grade("it moves left")])
        metrics = judge.metrics()
        assert metrics["judge/requests"] == 3 and metrics["judge/unscored"] == 1
        assert metrics["judge/cache_hit_frac"] == 0  # the same twice in one call is one request, and not from the cache
        assert 0.02 <= metrics["judge/latency_p50_s"] <= metrics["judge/latency_p95_s"]
        judge.ask([grade("it moves left")])
        assert judge.metrics() == {"judge/requests": 1, "judge/unscored": 0, "judge/cache_hit_frac": 1}
        assert judge.metrics() == {"judge/requests": 0, "judge/unscored": 0}


def test_many_threads_share_one_client():
    script = Script(latency_s=0.02)
    with running(script) as server:
        judge = openai_judge(server.url)
        replies = {}

        def ask(number):
            replies[number] = judge.ask([grade(f"it moves left {number} times")])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(replies.values()) == [['{"score": 2}']] * 20
    assert isinstance(judge.models["grade"], OpenAIChat)
