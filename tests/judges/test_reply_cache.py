"""The table of replies: what it keeps, what it lets go, and who may share it."""

import json
import threading
from dataclasses import replace

import pytest

from tests.doors import FORKS
from tests.judges.builders import every_kind, grade
from tests.ranks import on_ranks
from vidbridge.errors import ConfigError
from vidbridge.judges.base import JudgeRequest, JudgeUnavailable
from vidbridge.judges.llm_judge import ModelJudge, Said
from vidbridge.judges.reply_cache import ReplyCache
from vidbridge.runtime import collectives
from vidbridge.shapes_world.exact_judge import ExactJudge


class Counting:
    """A chat model that answers as the exact judge does, and what it was asked."""

    waits = False
    where, deadline_s, last_failure, notes = "here", 1.0, "", ""

    def __init__(self, identity="one", replies=None):
        self.identity, self.replies, self.asked = identity, replies, []

    def chat(self, prompts):
        self.asked += [prompt.request for prompt in prompts]
        if self.replies is not None:
            return [Said(reply=self.replies.pop(0), seconds=0.1) for _ in prompts]
        return [Said(reply=reply, seconds=0.1) for reply in ExactJudge().ask([each.request for each in prompts])]


def judge_of(model, cache=None, **settings):
    return ModelJudge(answers=model, cache=cache, **settings)


def test_what_is_known_is_not_asked_again_by_another_run(tmp_path):
    first, second = Counting(), Counting()
    path = str(tmp_path / "deep" / "judge.sqlite")
    replies = judge_of(first, ReplyCache(path)).ask(every_kind())
    assert judge_of(second, ReplyCache(path)).ask(every_kind()) == replies == ExactJudge().ask(every_kind())
    assert (len(first.asked), second.asked) == (4, [])


def test_identical_completions_of_a_group_cost_one_request():
    model = Counting()
    judge = judge_of(model)
    assert judge.ask([grade("it grows"), grade("it moves left"), grade("it grows")]) == [
        '{"score": 0}', '{"score": 2}', '{"score": 0}'
    ]  # fmt: skip
    assert [request.text for request in model.asked] == ["it grows", "it moves left"]


def test_everything_that_decides_a_reply_is_in_the_key():
    base = JudgeRequest(kind="grade", question="q", reference="r", text="t", events=("e",))
    changes = ({"kind": "verdict"}, {"question": "Q"}, {"reference": "R"}, {"text": "T"}, {"events": ("e", "f")})
    others = [replace(base, **change) for change in changes]
    one, other = judge_of(Counting("one")), judge_of(Counting("two"))
    keys = {one._key(request) for request in (base, *others)} | {other._key(base)}
    assert len(keys) == 7 and one._key(base) == judge_of(Counting("one"))._key(base)


def test_what_has_no_reply_is_not_kept(tmp_path):
    model = Counting(replies=[JudgeUnavailable("busy"), "Score 2", '{"score": 1}', '{"score": 1}'])
    judge = judge_of(model, ReplyCache(str(tmp_path / "judge.sqlite")))
    for _ in range(2):
        (reply,) = judge.ask([grade("it grows")])
        assert isinstance(reply, JudgeUnavailable)
    assert judge.ask([grade("it grows")]) == ['{"score": 1}'] == judge.ask([grade("it grows")])
    assert len(model.asked) == 3
    assert judge.trouble == "here: the reply is not JSON: 'Score 2'"


def test_two_roles_may_be_two_models():
    answers, events = Counting(), Counting()
    ModelJudge(answers=answers, events=events).ask(every_kind())
    assert [request.kind for request in answers.asked] == ["grade", "verdict"]
    assert [request.kind for request in events.asked] == ["extract", "entail"]


def metrics_of(out):
    """The second rank asks three times as much, and one of its requests has no reply."""
    replies = ['{"score": 2}', JudgeUnavailable("busy"), '{"score": 2}'][: 1 + 2 * collectives.rank()]
    judge = judge_of(Counting(replies=list(replies)))
    judge.ask([grade(f"take {number}") for number in range(len(replies))])
    judge.ask([grade("take 0")])
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps([judge.metrics(), judge.metrics()]))


def test_metrics_are_those_of_all_ranks(tmp_path):
    on_ranks(metrics_of, tmp_path)
    expected = [
        {
            "judge/requests": 6,
            "judge/unscored": 1,
            "judge/cache_hit_frac": 2 / 6,
            "judge/latency_p50_s": 0.1,
            "judge/latency_p95_s": 0.1,
        },
        {"judge/requests": 0, "judge/unscored": 0},
    ]
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [expected, expected]


def test_of_two_replies_the_first_stays():
    cache = ReplyCache()
    cache.put({"a": "1"})
    cache.put({"a": "2", "b": "3"})
    assert cache.get(["a", "b", "c"]) == {"a": "1", "b": "3"}


def test_the_file_stays_within_its_limit_and_the_used_ones_stay(tmp_path):
    """Replies of 10 kB, a limit of 300 kB; one of them is read again and again."""
    path = tmp_path / "judge.sqlite"
    cache = ReplyCache(str(path), max_mb=0.3)
    for number in range(100):
        cache.put({f"key {number}": "x" * 10_000})
        cache.get(["key 0"])
    assert 10 <= len(cache) <= 30
    assert set(cache.get(["key 0", "key 1", "key 99"])) == {"key 0", "key 99"}
    assert path.stat().st_size < 400_000


def test_a_reply_larger_than_the_limit_ends_the_search():
    cache = ReplyCache(max_mb=0.05)
    cache.put({"a": "x" * 100_000})
    assert len(cache) == 0


def test_many_keys_at_once():
    cache = ReplyCache()
    cache.put({str(number): str(number) for number in range(2000)})
    assert len(cache.get([str(number) for number in range(3000)])) == 2000
    assert cache.get([]) == {}


def write(path, name):
    for number in range(60):
        if number % 20 == 0:
            cache = ReplyCache(path)
        cache.put({f"{name} {number}": name, f"shared {number}": name})
        assert cache.get([f"{name} {number}"]) == {f"{name} {number}": name}


def test_several_processes_share_a_file(tmp_path):
    path = str(tmp_path / "judge.sqlite")
    writers = [FORKS.Process(target=write, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = ReplyCache(path)
    assert len(cache) == 3 * 60 + 60
    assert set(cache.get([f"shared {number}" for number in range(60)]).values()) <= set("abc")


def test_several_threads_share_a_cache(tmp_path):
    cache = ReplyCache(str(tmp_path / "judge.sqlite"))
    errors = []

    def work(name):
        try:
            for number in range(50):
                cache.put({f"{name} {number}": name})
                assert cache.get([f"{name} {number}"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(cache) == 200


def test_a_file_that_is_no_cache_is_named(tmp_path):
    path = tmp_path / "judge.sqlite"
    path.write_text("something else entirely, and long enough to be read as a header of a database " * 20)
    with pytest.raises(ConfigError, match="judge.cache.path: cannot use .*judge.sqlite"):
        ReplyCache(str(path))
    with pytest.raises(ConfigError, match="judge.cache.path"):
        ReplyCache(str(path / "below.sqlite"))


@pytest.mark.parametrize("settings", [{"window": 0}, {"max_unscored_frac": 1.5}, {"slack": -0.1}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="judge.window must be positive"):
        judge_of(Counting(), **settings)
