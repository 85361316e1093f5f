"""Adapters under ZeRO on two ranks: those of one process, the base untouched, and only they are divided and written."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.policy.builders import FRAMES, random_groups, whole_batch
from tests.policy.test_engines import ADAM, KINDS, LENGTHS, broken_off, handed_over, learn
from tests.ranks import on_ranks
from vidbridge.policy.adapters import LoraConfig
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.runtime import collectives
from vidbridge.types import SamplingParams

TRIED = ["local", "zero2", "zero3", "zero3_offload"]
LORA = LoraConfig(rank=3, alpha=6.0, targets=["language_model", "visual"])
pytestmark = pytest.mark.slow


def build(folder, kind, **loading):
    """As build_learner does it: the reference is the model itself without its adapters."""
    torch.manual_seed(0)
    module = load_model(str(folder), device="cpu", adapter=LORA, gradient_checkpointing=True, **loading)
    if kind is None:
        engine = LocalEngine(module, ADAM, total_updates=10)
    else:
        from vidbridge.policy.engines.zero import DeepSpeedEngine  # takes seconds to import

        engine = DeepSpeedEngine(module, ADAM, total_updates=10, **kind)
    return Policy(module, Processor.from_folder(folder, FRAMES), engine, reference=engine.whole())


def sampled(policy):
    """-> completions of a prompt, a rank without the others"""
    (group,) = random_groups(policy, LENGTHS[:1])
    rollout = SharedPrefixRollout(policy)
    (done,) = rollout.generate([group.encoded], 2, SamplingParams(max_completion_tokens=8), seed=1)
    return [[row.token_ids, row.sampler_logprobs] for row in done]


def explore(folder, out):
    """What runs on each rank; ``out`` gets the saved adapters and snapshots, and what was seen by rank."""
    seen, policies = {}, {}
    for kind in TRIED:
        policies[kind] = policy = build(folder, KINDS[kind])
        seen[kind] = {"norms": [each["policy/grad_norm"] for each in learn(policy, 3)], "sampled": sampled(policy)}
        batch = whole_batch(policy, random_groups(policy, LENGTHS[:1]))
        seen[kind]["reference"] = policy.ref_logprobs(batch).tolist()
        seen[kind]["handed over"] = handed_over(policy)
        policy.save(out / kind)
        snapshot = out / "snapshots" / kind
        snapshot.mkdir(parents=True, exist_ok=True)
        policy.engine.snapshot()(snapshot)
    for kind, other in (("zero2", "zero3"), ("zero3", "zero2")):
        seen[kind]["broken off"] = broken_off(folder, out, KINDS[kind], policies[other], build)
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def ran(random_qwen_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    on_ranks(explore, random_qwen_folder, out)
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(random_qwen_folder):
    policy = build(random_qwen_folder, None)
    return policy, [each["policy/grad_norm"] for each in learn(policy, 3)]


@pytest.mark.parametrize("kind", TRIED)
def test_two_ranks_train_and_sample_as_one_process(ran, alone, random_qwen_folder, kind):
    policy, norms = alone
    saved = dict(load_model(str(ran[0] / kind), device="cpu").named_parameters())
    new = dict(build(random_qwen_folder, None).module.named_parameters())
    for name, weight in policy.module.named_parameters():
        torch.testing.assert_close(saved[name], weight, atol=1e-5, rtol=0)
        assert (".lora_" in name) != torch.equal(weight, new[name]), "a test in which nothing moves shows nothing"
    base = load_model(str(random_qwen_folder), device="cpu")
    base_policy = Policy(base, policy.processor)
    with torch.no_grad():
        batch = whole_batch(base_policy, random_groups(base_policy, LENGTHS[:1]))
        wanted = base_policy.logprobs(batch)[0]
    for rank in ran[1]:
        assert rank[kind]["norms"] == pytest.approx(norms, rel=1e-4)
        assert torch.equal(torch.tensor(rank[kind]["reference"]), wanted)  # to the last bit
        for (ids, values), (wanted_ids, wanted_values) in zip(rank[kind]["sampled"], sampled(policy), strict=True):
            assert tuple(ids) == wanted_ids and values == pytest.approx(wanted_values, abs=1e-4)


@pytest.mark.parametrize("kind", TRIED)
def test_a_snapshot_holds_the_adapters_and_their_moments(ran, alone, kind):
    """Three numbers for each of theirs; stage 3 fills up each tensor to a whole number for each of two ranks."""
    trained = [weight.numel() for weight in alone[0].module.parameters() if weight.requires_grad]
    files = [load_file(path) for path in (ran[0] / "snapshots" / kind).glob("*.safetensors")]
    held = sum(t.numel() for tensors in files for name, t in tensors.items() if not name.startswith("step"))
    assert 3 * sum(trained) <= held <= 3 * (sum(trained) + len(trained))


@pytest.mark.parametrize("kind", TRIED)
def test_another_engine_gets_the_merged_weights(ran, kind):
    """Under ZeRO-3 no more than a weight with the two of its adapter is whole."""
    for rank in ran[1]:
        wrong, most = rank[kind]["handed over"]
        assert wrong == [] and (most == 3 if "zero3" in kind else most > 3)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_snapshot_is_gone_on_from_bit_for_bit(ran, kind):
    assert [rank[kind]["broken off"] for rank in ran[1]] == [[[], 2]] * 2
