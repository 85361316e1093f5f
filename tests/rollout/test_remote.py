"""rollout=vllm_server against real servers on this machine, with our own engine in them; vLLM in them: tests/vllm."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import pytest
import torch

from tests.composing import config_of
from tests.ranks import free_port, on_ranks
from tests.rollout.serving import PROMPTS, SHORT, Faulty, connect, ids_of, make_policy, request, serving
from vidbridge.errors import ConfigError, RolloutError, RolloutLost
from vidbridge.rollout import servers as pushing
from vidbridge.rollout import wire
from vidbridge.rollout.server_client import Server, ServerFault
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.runtime import collectives


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
    monkeypatch.setattr(pushing, "PART_BYTES", 100_000)
    rollout = connect(policy, *two[0])
    before = rollout.servers.version
    rollout.sync(moved)
    assert {server.version for server in two[0]} == {rollout.servers.version} != {before}
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
    assert [server.address for server in rollout.servers.live] == [server.url for server in servers]  # at the last push
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
    with pytest.raises(ServerFault, match=f"it has other weights .{other.servers.version}"):
        Server(server.url).post(wire.GENERATE, message, 5.0)
    assert not engine.asked
    found = mine.generate(encoded, 3, SHORT, seed=5)
    assert ids_of(found) == ids_of(SharedPrefixRollout(policy).generate(encoded, 3, SHORT, seed=5))
    assert server.version == mine.servers.version


def test_a_server_whose_engine_is_stuck_is_left_alone_until_it_is_started_again(policy, encoded, two, monkeypatch):
    monkeypatch.setattr(pushing, "BEGIN_S", 0.3)
    servers, engines = two
    begun = []

    def stuck():
        begun.append(1)
        time.sleep(2)

    monkeypatch.setattr(engines[0], "begin_weights", stuck, raising=False)
    rollout = connect(policy, *servers)
    assert [server.address for server in rollout.servers.live] == [servers[1].url] and len(begun) == 1
    rollout.sync(policy)
    assert len(begun) == 1, "it is not waited for again"
    monkeypatch.undo()
    servers[0].boot = "another start"
    time.sleep(2)  # the call that was stuck is over
    rollout.sync(policy)
    assert len(rollout.servers.live) == 2


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


def test_a_prompt_whose_parts_do_not_fit_is_refused_by_its_uid(policy, encoded, two):
    rollout = connect(policy, *two[0])
    wrong = replace(encoded[1], pixel_values=encoded[1].pixel_values[:-4])
    with pytest.raises(RolloutError, match="qa/train/1: .* tokens of videos and images, .* do not fit together"):
        rollout.generate([encoded[0], wrong], 2, SHORT, seed=0)
    assert len(rollout.generate([encoded[0]], 2, SHORT, seed=0)[0]) == 2  # it goes on


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
    rank = collectives.rank()
    encoded = [policy.processor.encode(each) for each in PROMPTS]
    own = [index for index in range(len(PROMPTS)) if index % 2 == rank]
    rollout = connect(policy, Server(address), patience_s=20)
    version = rollout.servers.version
    real, failed = rollout._completed, []

    def once_unusable(*arguments):
        if rank == 1 and len(failed) < 4:  # both prompts, and both once more
            failed.append(1)
            raise ServerFault("unusable")
        return real(*arguments)

    rollout._completed = once_unusable
    found = rollout.generate([encoded[index] for index in own], 3, SHORT, seed=5, indices=own)
    assert rollout.servers.version != version
    torch.save((own, ids_of(found)), f"{folder}/{rank}.pt")


def test_what_one_rank_loses_all_ranks_push_again(wanted, engines, tmp_path):
    with serving(engines[0]) as server:
        on_ranks(_loses_a_server, server.url, str(tmp_path))
    found = {}
    for rank in range(2):
        own, ids = torch.load(tmp_path / f"{rank}.pt")
        found |= dict(zip(own, ids, strict=True))
    assert [found[index] for index in range(len(PROMPTS))] == ids_of(wanted)
