"""rollout=vllm_server against real servers on this machine, with our own engine in them; vLLM in them: tests/vllm."""

from __future__ import annotations

import copy
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vidbridge
from tests.composing import config_of
from tests.conftest import SHAPES_FRAMES, random_clip, video_prompt
from tests.ranks import free_port, on_ranks
from vidbridge.errors import ConfigError, RolloutError, RolloutLost
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout import remote, server_client, wire
from vidbridge.rollout.remote import RemoteRollout
from vidbridge.rollout.served_shared_prefix import ServedSharedPrefix
from vidbridge.rollout.server import RolloutServer
from vidbridge.rollout.server_client import Server
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import SamplingParams

TINY = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / "tiny_qwen2_5_vl"
CLIPS = [random_clip(4, 48, 48, seed=seed) for seed in range(3)]
PROMPTS = [video_prompt(*clips, text="What moves?") for clips in ((CLIPS[0],), (CLIPS[1], CLIPS[2]), (), (CLIPS[2],))]
SHORT = SamplingParams(max_completion_tokens=8)


class Faulty:
    """An engine in whose completions something goes wrong, as long as ``faults`` has something for it."""

    def __init__(self, engine):
        self.engine, self.faults, self.asked = engine, [], []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def complete(self, request):
        self.asked.append(request.index)
        outputs = self.engine.complete(request)
        return self.faults.pop(0)(outputs) if self.faults else outputs


def nan(outputs):
    return [{**outputs[0], "logprobs": [math.nan] * len(outputs[0]["token_ids"])}, *outputs[1:]]


def fewer(outputs):
    return outputs[1:]


def no_tokens(outputs):
    return [{**each, "token_ids": []} for each in outputs]


def wrong_form(outputs):
    return [["token_ids"]] * len(outputs)


def failing(outputs):
    raise RuntimeError("out of memory")


def hanging(outputs):
    time.sleep(3)
    return outputs


@contextmanager
def serving(served, port=0, key=None):
    with RolloutServer(("127.0.0.1", port), served, key) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def policy():
    return make_policy()


def make_policy():
    module = load_model(str(TINY), device="cpu")
    return Policy(module, Processor.from_folder(TINY, SHAPES_FRAMES, max_prompt_tokens=900))


@pytest.fixture(scope="module")
def encoded(policy):
    return [replace(policy.processor.encode(each), uid=f"qa/train/{nth}") for nth, each in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def wanted(policy, encoded):
    return SharedPrefixRollout(policy).generate(encoded, 3, SHORT, seed=5)


@pytest.fixture
def moved(policy):
    """Other weights than those that a server has read."""
    other = Policy(copy.deepcopy(policy.module), policy.processor)
    with torch.no_grad():
        for weight in other.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return other


@pytest.fixture(scope="module")
def engines():
    return [ServedSharedPrefix(str(TINY), device="cpu") for _ in range(2)]


@pytest.fixture
def two(engines):
    """Two servers, and their engines."""
    first, second = map(Faulty, engines)
    with serving(first) as one, serving(second) as other:
        yield (one, other), (first, second)


def connect(policy, *servers, timeout_s=20.0, patience_s=0.5, max_rows=6):
    rollout = RemoteRollout(
        policy,
        [each if isinstance(each, Server) else Server(each.url) for each in servers],
        max_rows=max_rows,
        max_completion_tokens=8,
        timeout_s=timeout_s,
        patience_s=patience_s,
    )
    rollout.sync(policy)
    return rollout


def ids_of(completions):
    return [[row.token_ids for row in group] for group in completions]


def test_the_completions_are_those_of_our_rollout_here(policy, encoded, wanted, two):
    servers, engines = two
    rollout, told = connect(policy, *servers), {}
    found = rollout.generate(encoded, 3, SHORT, seed=5, ended=told.__setitem__)
    assert ids_of(found) == ids_of(wanted) and dict(enumerate(found)) == told
    for group, ours in zip(found, wanted):
        for row, own in zip(group, ours):
            assert row.text == own.text and row.finished == own.finished
            assert row.sampler_logprobs == pytest.approx(own.sampler_logprobs, abs=1e-4)
    assert all(engine.asked for engine in engines), "both servers should have had work"
    some = rollout.generate([encoded[3], encoded[0]], 3, SHORT, seed=5, indices=[3, 0])
    assert ids_of(some) == [ids_of(wanted)[3], ids_of(wanted)[0]]
    greedy = replace(SHORT, greedy=True)
    assert ids_of(rollout.generate(encoded, 2, greedy, seed=0)) == ids_of(
        SharedPrefixRollout(policy).generate(encoded, 2, greedy, seed=0)
    )
    assert rollout.generate([], 3, SHORT, seed=5) == []


def test_new_weights_are_pushed_in_parts(policy, moved, encoded, two, monkeypatch):
    monkeypatch.setattr(remote, "PART_BYTES", 100_000)
    rollout = connect(policy, *two[0])
    before = rollout.version
    rollout.sync(moved)
    assert {server.version for server in two[0]} == {rollout.version} != {before}
    expected = SharedPrefixRollout(moved).generate(encoded, 3, SHORT, seed=5)
    assert ids_of(rollout.generate(encoded, 3, SHORT, seed=5)) == ids_of(expected)


@pytest.mark.parametrize("fault", [nan, fewer, no_tokens, wrong_form, failing])
def test_what_cannot_be_used_is_asked_for_again_and_never_learnt_from(policy, encoded, wanted, two, fault):
    """Once: of the same server. Always: of the other one. On both: the run ends."""
    servers, engines = two
    rollout = connect(policy, *servers)
    engines[0].faults = [fault]
    assert ids_of(rollout.generate(encoded, 3, SHORT, seed=5)) == ids_of(wanted)
    engines[0].faults = [fault] * 100
    assert ids_of(rollout.generate(encoded, 3, SHORT, seed=5)) == ids_of(wanted)
    assert [server.address for server in rollout.live] == [server.url for server in servers]  # at the last push
    engines[1].faults = [fault] * 100
    with pytest.raises(RolloutLost, match=f"failed 3 times at the same batch, .*{servers[1].url}.*resume=auto"):
        rollout.generate(encoded, 3, SHORT, seed=5)
    engines[0].faults = engines[1].faults = []


def test_a_server_that_hangs_is_gone_round(policy, encoded, wanted, two):
    servers, engines = two
    rollout = connect(policy, *servers, timeout_s=1.0)
    engines[0].faults = [hanging] * 100
    assert ids_of(rollout.generate(encoded, 3, SHORT, seed=5)) == ids_of(wanted)
    engines[0].faults = []


def test_a_server_that_was_started_again_gets_the_weights_and_only_what_is_lacking_is_asked_for(
    policy, moved, encoded, engines
):
    """It would sample from other weights: it has the ones that it has read."""
    port = free_port()
    engine = Faulty(engines[0])
    expected = SharedPrefixRollout(moved).generate(encoded, 3, SHORT, seed=5)
    with serving(engine, port) as server:
        rollout = connect(moved, server, max_rows=3, patience_s=20)

    def start_later():
        time.sleep(0.5)
        with serving(engine, port):
            done.wait(20)

    done, told = threading.Event(), []
    thread = threading.Thread(target=start_later)
    thread.start()
    job = rollout.start(encoded, 3, SHORT, seed=5, ended=lambda index, group: told.append(index))
    found = job.finish()
    assert ids_of(found) == ids_of(expected) and sorted(told) == [0, 1, 2, 3]
    assert sorted(job.again()) == [0, 1, 2, 3]
    done.set()
    thread.join()


def test_weights_of_another_run_are_not_sampled_from(policy, moved, encoded, two):
    """Whoever pushes last has the server; the other is refused, pushes again, and asks again."""
    server, engine = two[0][0], two[1][0]
    mine, other = connect(policy, server), connect(moved, server)
    message = request(mine, encoded[0]).pack()
    with pytest.raises(server_client.ServerFault, match=f"it has other weights .{other.version}"):
        Server(server.url).post(wire.GENERATE, message, 5.0)
    assert not engine.asked
    found = mine.generate(encoded, 3, SHORT, seed=5)
    assert ids_of(found) == ids_of(SharedPrefixRollout(policy).generate(encoded, 3, SHORT, seed=5))
    assert server.version == mine.version


def request(rollout, prompt):
    return wire.Request(
        version=rollout.version,
        prompt=prompt,
        group_size=2,
        sampling=SHORT,
        seed=0,
        index=0,
        suppressed_ids=rollout.policy.suppressed_ids,
    )


def test_weights_that_come_end_what_is_being_completed(policy, encoded, two):
    class Endless(Faulty):
        def complete(self, request):
            self.engine.abort_seen.wait(20)
            return self.engine.complete(request)

    engine = two[1][0].engine
    engine.abort_seen = threading.Event()
    answers: list[str] = []
    with serving(Endless(engine)) as server:
        rollout = connect(policy, server)
        message = request(rollout, encoded[0]).pack()

        def ask():
            try:
                answers.append(str(Server(server.url).post(wire.GENERATE, message, 20.0)))
            except server_client.ServerFault as fault:
                answers.append(str(fault))

        thread = threading.Thread(target=ask)
        thread.start()
        while server.state()["running"] == 0:
            time.sleep(0.01)
        threading.Timer(0.3, engine.abort_seen.set).start()  # after the abort: the weights wait for it
        rollout.sync(policy)
        thread.join()
    assert answers == ["it has other weights (none, as after a start)"]


def test_a_server_whose_engine_is_stuck_is_left_alone_until_it_is_started_again(policy, encoded, two, monkeypatch):
    monkeypatch.setattr(remote, "BEGIN_S", 0.3)
    servers, engines = two
    begun = []

    def stuck():
        begun.append(1)
        time.sleep(2)

    monkeypatch.setattr(engines[0], "begin_weights", stuck, raising=False)
    rollout = connect(policy, *servers)
    assert [server.address for server in rollout.live] == [servers[1].url] and len(begun) == 1
    rollout.sync(policy)
    assert len(begun) == 1, "it is not waited for again"
    monkeypatch.undo()
    servers[0].boot = "another start"
    time.sleep(2)  # the call that was stuck is over
    rollout.sync(policy)
    assert len(rollout.live) == 2


def test_without_any_server_the_run_ends_after_its_patience(policy):
    nobody = Server(f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(RolloutLost, match=f"no rollout server for 0:0. .{nobody.address}: ConnectionRefused.*serve"):
        connect(policy, nobody, patience_s=0.5)
    assert 0.5 < time.monotonic() - started < 10


def test_a_server_of_another_model_or_too_short_is_refused(policy, two):
    class Other:
        about = {**two[1][0].about, "hidden_size": 64}

    class Short:
        about = {**two[1][0].about, "max_tokens": 300}

    class Halved:
        about = {**two[1][0].about, "dtype": "bfloat16"}

    for served, told in (
        (Other(), "has hidden_size=64, this run needs 128"),
        (Short(), "max_tokens=300, this run needs"),
        (Halved(), "dtype=bfloat16, this run needs float32: see serve --help"),
    ):
        with serving(served) as server, pytest.raises(ConfigError, match=told):
            connect(policy, server)


def test_parts_that_are_lost_or_weights_that_lack_are_noticed(policy, two):
    server = Server(two[0][0].url)
    server.post(wire.BEGIN, wire.pack({"version": "a"}), 5.0)
    some = {"lm_head.weight": torch.zeros(2, 2)}
    with pytest.raises(server_client.ServerFault, match="part 1 of the weights came in the place of part 0"):
        server.post(wire.PART, wire.pack({"version": "a", "part": 1}, some), 5.0)
    with pytest.raises(server_client.ServerFault, match="0 of 2 parts of the weights have come"):
        server.post(wire.END, wire.pack({"version": "a", "parts": 2}), 5.0)
    with pytest.raises(server_client.ServerFault, match="weights that have not come: .*80 in all"):
        server.post(wire.END, wire.pack({"version": "a", "parts": 0}), 5.0)
    with pytest.raises(server_client.ServerFault, match="it has other weights .none"):
        server.post(wire.PART, wire.pack({"version": "b", "part": 0}, some), 5.0)
    assert two[0][0].version is None


def test_a_prompt_whose_parts_do_not_fit_is_refused_by_its_uid(policy, encoded, two):
    rollout = connect(policy, *two[0])
    wrong = replace(encoded[1], pixel_values=encoded[1].pixel_values[:-4])
    with pytest.raises(RolloutError, match="qa/train/1: .* tokens of videos and images, .* do not fit together"):
        rollout.generate([encoded[0], wrong], 2, SHORT, seed=0)
    assert len(rollout.generate([encoded[0]], 2, SHORT, seed=0)[0]) == 2  # it goes on


def test_the_key_is_asked_for(policy, engines):
    with serving(engines[0], key="secret") as server:
        for key in (None, "other"):
            with pytest.raises(server_client.ServerFault, match="status 401: the key in VLLM_API_KEY"):
                Server(server.url, key).get(wire.STATE, 5.0)
        assert Server(server.url, "secret").get(wire.STATE, 5.0)["version"] is None


def test_what_is_no_message_is_refused(two):
    server = Server(two[0][0].url)
    for message in (b"", b"{}", b"\xff" * 40, wire.pack({"version": "x"})):
        with pytest.raises(server_client.ServerFault, match="status 400"):
            server.post(wire.GENERATE, message, 5.0)
    with pytest.raises(server_client.ServerFault, match="status 404: there is no /elsewhere here"):
        server.get("/elsewhere", 5.0)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False)))
def test_a_message_comes_out_as_it_went_in(told):
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.empty(0, 4), "c": torch.ones(3, dtype=torch.bfloat16)}
    said, there = wire.unpack(wire.pack(told, tensors))
    assert said == told and all(torch.equal(there[name], tensor) for name, tensor in tensors.items())


def test_addresses_are_checked():
    assert list(config_of("rollout=vllm_server").rollout.addresses) == ["http://127.0.0.1:8200"]
    for wrong in ("[]", "['gpu7:8200']", "['http://a:1','http://a:1']", "['ftp://a']", "['http://me:secret@a:1']"):
        with pytest.raises(ConfigError, match="rollout.addresses"):
            config_of("rollout=vllm_server", f"rollout.addresses={wrong}")
    with pytest.raises(ConfigError, match="rollout.ahead=1 needs rollout=vllm_server"):
        config_of("rollout.ahead=1")
    with pytest.raises(ConfigError, match="rollout.ahead must be 0 or 1, got 2"):
        config_of("rollout=vllm_server", "rollout.ahead=2")


def test_a_rank_holds_nothing_of_an_engine():
    """Nor, under ZeRO-3, a replica for it: plan=true counts neither."""
    memory = config_of("rollout=vllm_server").rollout.engine_memory(1e9)
    assert (memory.weights, memory.cache, memory.sleeps) == (0, 0, False)


def _loses_a_server(address, folder):
    """The second rank alone finds its answers unusable; both ranks push again."""
    policy = make_policy()
    rank = remote.collectives.rank()
    encoded = [policy.processor.encode(each) for each in PROMPTS]
    own = [index for index in range(len(PROMPTS)) if index % 2 == rank]
    rollout = connect(policy, Server(address), patience_s=20)
    version = rollout.version
    real, failed = rollout._completed, []

    def once_unusable(*arguments):
        if rank == 1 and len(failed) < 4:  # both prompts, and both once more
            failed.append(1)
            raise server_client.ServerFault("unusable")
        return real(*arguments)

    rollout._completed = once_unusable
    found = rollout.generate([encoded[index] for index in own], 3, SHORT, seed=5, indices=own)
    assert rollout.version != version
    torch.save((own, ids_of(found)), f"{folder}/{rank}.pt")


def test_what_one_rank_loses_all_ranks_push_again(wanted, engines, tmp_path):
    with serving(engines[0]) as server:
        on_ranks(_loses_a_server, server.url, str(tmp_path))
    found = {}
    for rank in range(2):
        own, ids = torch.load(tmp_path / f"{rank}.pt")
        found |= dict(zip(own, ids, strict=True))
    assert [found[index] for index in range(len(PROMPTS))] == ids_of(wanted)
