"""rollout=vllm_server on a real server with a real vLLM, beside our own rollout: where make test-vllm runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not in this environment: make test-vllm")

from tests.doors import ROOT  # noqa: E402
from tests.vllm.test_vllm import PROMPTS, SHORT, gap, ids_of, make_policy  # noqa: E402
from vidbridge.rollout.remote import RemoteRollout  # noqa: E402
from vidbridge.rollout.server_client import Server  # noqa: E402
from vidbridge.rollout.shared_prefix import SharedPrefixRollout  # noqa: E402

SMALL = ("--kv-cache-memory-bytes", "200000000", "--max-rows", "64")


@pytest.fixture(scope="module", params=["tiny_qwen2_5_vl", "tiny_qwen3_vl"])
def policy(request):
    return make_policy(request.param)


@pytest.fixture(scope="module")
def address(policy):
    """A server in processes of its own, as people start it."""
    command = [sys.executable, "-m", "vidbridge.rollout.serve", "--port", "0", *SMALL]
    with subprocess.Popen(
        [*command, "--model", policy.module.name_or_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        yield next(line.strip() for line in lines if line.startswith("http"))
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def encoded(policy):
    return [policy.processor.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def rollout(policy, address):
    rollout = RemoteRollout(
        policy, [Server(address)], max_rows=64, max_completion_tokens=64, timeout_s=120, patience_s=10
    )
    rollout.sync(policy)
    return rollout


def test_greedy_is_ours_token_for_token(policy, rollout, encoded):
    greedy = replace(SHORT, greedy=True, max_completion_tokens=40)
    found, wanted = (each.generate(encoded, 2, greedy, seed=0) for each in (rollout, SharedPrefixRollout(policy)))
    assert ids_of(found) == ids_of(wanted)


def test_what_it_says_of_its_tokens_is_what_the_learner_says(policy, rollout, encoded):
    completions = rollout.generate(encoded, 4, SHORT, seed=1)
    assert gap(policy, PROMPTS, encoded, completions) < 1e-4
    assert ids_of(rollout.generate(encoded, 4, SHORT, seed=1)) == ids_of(completions)


def test_new_weights_are_sampled_from_and_those_of_a_push_that_was_broken_off_are_not(policy, rollout, encoded):
    """The second push takes the place of one of which only half the weights have come."""
    before = {name: weight.clone() for name, weight in policy.module.state_dict().items()}
    with torch.no_grad():
        for weight in policy.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    try:
        weights = policy.weights
        half = list(weights())[:20]
        policy.weights = lambda: iter(half)
        assert not rollout.servers._pushed(policy)  # weights are lacking: it is not used
        policy.weights = weights
        rollout.sync(policy)
        assert gap(policy, PROMPTS, encoded, rollout.generate(encoded, 2, SHORT, seed=1)) < 1e-4
    finally:
        del policy.weights
        policy.module.load_state_dict(before)
        rollout.sync(policy)
    assert gap(policy, PROMPTS, encoded, rollout.generate(encoded, 2, SHORT, seed=1)) < 1e-4


def test_a_run_and_an_evaluation_through_it(policy, address, tmp_path):
    small = ["steps=2", "prompts_per_step=2", "algo.group_size=4", "eval.num_items=2", "eval.num_samples=1"]
    model = "tiny_qwen3_vl" if "qwen3" in policy.module.name_or_path else "tiny"
    told = ["rollout=vllm_server", f"rollout.addresses=[{address}]", "track=none"]
    for door, arguments in {
        "train.py": [f"model={model}", *small, "rollout.ahead=1", "eval.every=0", f"hydra.run.dir={tmp_path / 'run'}"],
        "evaluate.py": [f"checkpoint={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'evaluation'}"],
    }.items():
        done = subprocess.run([sys.executable, door, *told, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/stale_frac"] for row in rows if "rollout/stale_frac" in row] == [0.0, 1.0]
