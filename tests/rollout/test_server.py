"""A rollout server by itself: versions of weights, parts of them, keys, and what is no message."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rollout.serving import Faulty, connect, request, serving
from vidbridge.rollout import wire
from vidbridge.rollout.server_client import Server, ServerFault


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
            except ServerFault as fault:
                answers.append(str(fault))

        thread = threading.Thread(target=ask)
        thread.start()
        while server.state()["running"] == 0:
            time.sleep(0.01)
        threading.Timer(0.3, engine.abort_seen.set).start()  # after the abort: the weights wait for it
        rollout.sync(policy)
        thread.join()
    assert answers == ["it has other weights (none, as after a start)"]


def test_parts_that_are_lost_or_weights_that_lack_are_noticed(policy, two):
    server = Server(two[0][0].url)
    server.post(wire.BEGIN, wire.pack({"version": "a"}), 5.0)
    some = {"lm_head.weight": torch.zeros(2, 2)}
    with pytest.raises(ServerFault, match="part 1 of the weights came in the place of part 0"):
        server.post(wire.PART, wire.pack({"version": "a", "part": 1}, some), 5.0)
    with pytest.raises(ServerFault, match="0 of 2 parts of the weights have come"):
        server.post(wire.END, wire.pack({"version": "a", "parts": 2}), 5.0)
    with pytest.raises(ServerFault, match="weights that have not come: .*80 in all"):
        server.post(wire.END, wire.pack({"version": "a", "parts": 0}), 5.0)
    with pytest.raises(ServerFault, match="it has other weights .none"):
        server.post(wire.PART, wire.pack({"version": "b", "part": 0}, some), 5.0)
    assert two[0][0].version is None


def test_the_key_is_asked_for(policy, engines):
    with serving(engines[0], key="secret") as server:
        for key in (None, "other"):
            with pytest.raises(ServerFault, match="status 401: the key in VLLM_API_KEY"):
                Server(server.url, key).get(wire.STATE, 5.0)
        assert Server(server.url, "secret").get(wire.STATE, 5.0)["version"] is None


def test_what_is_no_message_is_refused(two):
    server = Server(two[0][0].url)
    for message in (b"", b"{}", b"\xff" * 40, wire.pack({"version": "x"})):
        with pytest.raises(ServerFault, match="status 400"):
            server.post(wire.GENERATE, message, 5.0)
    with pytest.raises(ServerFault, match="status 404: there is no /elsewhere here"):
        server.get("/elsewhere", 5.0)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False)))
def test_a_message_comes_out_as_it_went_in(told):
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.empty(0, 4), "c": torch.ones(3, dtype=torch.bfloat16)}
    said, there = wire.unpack(wire.pack(told, tensors))
    assert said == told and all(torch.equal(there[name], tensor) for name, tensor in tensors.items())


def test_a_server_whose_engine_has_died_ends(policy, encoded, two):
    """So that whoever watches over its process starts it again."""

    class Dead(Faulty):
        is_dead = True

        def complete(self, request):
            raise RuntimeError("the engine is dead")

    with serving(Dead(two[1][0].engine)) as server:
        rollout = connect(policy, server)
        with pytest.raises(ServerFault, match="status 500: RuntimeError: the engine is dead"):
            Server(server.url).post(wire.GENERATE, request(rollout, encoded[0]).pack(), 5.0)
        server.thread.join(10)
        assert not server.thread.is_alive()
