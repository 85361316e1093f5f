"""Rollout servers on this machine with our own engine in them, and who asks them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import vidbridge
from tests.conftest import SHAPES_FRAMES, random_clip, video_prompt
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout import wire
from vidbridge.rollout.remote import RemoteRollout
from vidbridge.rollout.server import RolloutServer
from vidbridge.rollout.server_client import Server
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


@contextmanager
def serving(served, port=0, key=None):
    with RolloutServer(("127.0.0.1", port), served, key) as server:
        server.thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        server.thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def make_policy():
    module = load_model(str(TINY), device="cpu")
    return Policy(module, Processor.from_folder(TINY, SHAPES_FRAMES, max_prompt_tokens=900))


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


def request(rollout, prompt):
    return wire.Request(
        version=rollout.servers.version,
        prompt=prompt,
        group_size=2,
        sampling=SHORT,
        seed=0,
        index=0,
        suppressed_ids=rollout.policy.suppressed_ids,
    )
