"""ZeRO on two ranks does what one process does: real DeepSpeed, real processes, one start for all of it."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.conftest import random_image, video_prompt
from tests.policy.builders import FRAMES, TEXT_ALONE, random_groups, whole_batch
from tests.ranks import on_ranks
from vidbridge.config.schema import OptimConfig
from vidbridge.errors import ConfigError, Diverged
from vidbridge.policy.adapters import merged_weights
from vidbridge.policy.engines.files import load_weights
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy, frozen_copy
from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives

KINDS = {
    "local": None,
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "kept_whole": 0},
    "zero3_some_whole": {"stage": 3, "kept_whole": 500},  # the norms and the smaller matrices
    "zero3_offload": {"stage": 3, "offload": True, "kept_whole": 0},
}
SHARDED = [name for name, kind in KINDS.items() if kind is not None]
DIVIDED = ["zero3", "zero3_offload"]  # every weight of the model is
ADAM = OptimConfig(lr=1e-3, weight_decay=0.1, max_grad_norm=5.0)
# what the second rank has beside the videos of the first
BESIDE = {"text only": TEXT_ALONE, "images": video_prompt(random_image(16, 24, seed=5), random_image(24, 8, seed=6))}
LENGTHS = [[5, 7], [6, 4], [9, 8], [3, 5]]  # tokens of the completions, by group
# how a model is loaded -> within what its weights agree after three updates of about 1e-3 each
LOADED = {
    "plain": ({}, 1e-5),
    "partly frozen, checkpointed": ({"frozen": ["visual"], "gradient_checkpointing": True}, 1e-5),
    "bfloat16": ({"dtype": "bfloat16"}, 0.02),  # a step between neighbours near 1 is 1/128
}


def build(folder, kind, **loading):
    """As build_learner does it."""
    module = load_model(str(folder), device="cpu", divided=kind is not None and kind["stage"] == 3, **loading)
    reference = frozen_copy(module)
    if kind is None:
        engine = LocalEngine(module, ADAM, total_updates=10)
    else:
        from vidbridge.policy.engines.zero import DeepSpeedEngine  # takes seconds to import

        engine = DeepSpeedEngine(module, ADAM, total_updates=10, **kind)
    return Policy(module, Processor.from_folder(folder, FRAMES), engine, reference=reference)


def learn(policy, updates, *, poison=None, second=None):
    """Each rank takes every second group; the sum of all losses is that of one process. -> metrics of each update

    ``second``: a prompt of all groups of the second rank.
    """
    groups = random_groups(policy, LENGTHS)
    if second is not None:
        groups[1::2] = random_groups(policy, LENGTHS[1::2], [second])
    metrics = []
    for _ in range(updates):
        own = range(collectives.rank(), len(groups), collectives.world_size())
        batches = policy.with_router_weights([whole_batch(policy, [groups[place]]) for place in own])
        for place, batch in zip(own, batches):
            outputs = policy.forward(batch)
            logprobs = outputs.logprobs
            drift = policy.ref_logprobs(batch) - logprobs
            gain = torch.tensor([[1.0], [-0.5]]) * (place + 1) / 10
            if place == poison:
                gain = gain * math.nan
            policy.backward(-(logprobs * gain).sum() + 0.1 * (drift.exp() - drift - 1).sum() + outputs.router_loss)
        metrics.append(policy.update())
    return metrics


def weights_of(policy):
    return {name: weight.detach().clone() for name, weight in policy.whole().named_parameters()}


def differ(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


def handed_over(policy):
    """-> weights that are not handed over as the whole model has them, and how many are whole together at the most"""
    wanted, right, most = dict(merged_weights(policy.whole())), set(), 0
    for name, weight in policy.weights():
        right |= {name} if torch.equal(weight, wanted[name]) else set()
        most = max(most, sum(each.numel() > 0 for each in policy.module.parameters()))
    return [sorted(set(wanted) - right), most]


def explore(folder, out):
    """What runs on each rank; ``out`` gets the saved models, and what was seen by rank."""
    seen, plain = {}, {}
    for kind, settings in KINDS.items():
        for loaded, (loading, _) in LOADED.items():
            policy = build(folder, settings, **loading)
            seen[f"{kind}, {loaded}"] = learn(policy, 3)
            policy.save(out / kind / loaded)
            seen[f"{kind}, {loaded}, replica"] = getattr(policy.engine, "replica", None) is not None
            if loaded == "plain":
                plain[kind] = policy
            snapshot = out / "snapshots" / kind / loaded
            snapshot.mkdir(parents=True, exist_ok=True)
            policy.engine.snapshot()(snapshot)
            if kind in SHARDED and loaded == "bfloat16":
                parts = {str(number): part.detach() for number, part in enumerate(policy.engine._parts())}
                save_file(parts, out / f"{kind}_rank{collectives.rank()}.parts")
    for name, prompt in BESIDE.items():
        policy = build(folder, KINDS["zero3"])
        learn(policy, 1, second=prompt)
        policy.save(out / "zero3" / name)
    for kind in SHARDED:
        seen[f"{kind}, handed over"] = handed_over(plain[kind])
        seen[f"{kind}, bytes"] = bytes_held(plain[kind])
        other = plain["zero3" if kind == "zero2" else "zero2"]
        seen[f"{kind}, broken off"] = broken_off(folder, out, KINDS[kind], other)
        seen[f"{kind}, poisoned"] = poisoned(folder, KINDS[kind])
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


def bytes_held(policy):
    """After updates: {of the model's own weights, of 32-bit weights and Adam's moments} on this rank."""
    parts = policy.engine._parts()
    # a weight that is divided keeps the rank's part of it here
    own = [getattr(weight, "ds_tensor", weight) for weight in policy.module.parameters()]
    moments = [value for part in parts for value in policy.engine.optimizer.state[part].values() if value.ndim]
    return [sum(tensor.numel() * tensor.element_size() for tensor in tensors) for tensors in (own, [*parts, *moments])]


def broken_off(folder, out, kind, other, build=build):
    """2 updates against 1, a snapshot, and 1 by a new engine -> names of weights that differ; ``other`` refuses"""
    unbroken = build(folder, kind)
    learn(unbroken, 1)
    write = unbroken.engine.snapshot()
    learn(unbroken, 1)
    there = out / "snapshot"
    there.mkdir(exist_ok=True)
    write(there)
    resumed = build(folder, kind)
    resumed.engine.load(there)
    learn(resumed, 1)
    with pytest.raises(ValueError, match="is of a run with .*'stage'.*, this one has"):
        other.engine.load(there)
    return [differ(weights_of(unbroken), weights_of(resumed)), resumed.engine.updates]


def poisoned(folder, kind):
    """A gradient of the second rank is not a number -> what changed, and what both ranks counted"""
    policy, healthy = build(folder, kind), build(folder, kind)
    before = weights_of(policy)
    first = learn(policy, 1, poison=3)
    unchanged = differ(before, weights_of(policy)) == []
    healthy.engine.updates = 1  # the rate is a function of it
    learn(policy, 1)
    learn(healthy, 1)
    no_trace = differ(weights_of(healthy), weights_of(policy)) == []
    learn(policy, 2, poison=3)
    with pytest.raises(Diverged, match="not finite in 3 updates in a row"):
        learn(policy, 1, poison=3)
    return [first, unchanged, no_trace, policy.engine.skipped_updates]


@pytest.fixture(scope="module")
def ran(random_qwen_folder, tmp_path_factory):
    """-> folder of what two ranks did, [what each of them saw]"""
    out = tmp_path_factory.mktemp("ranks")
    on_ranks(explore, random_qwen_folder, out)
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module", params=LOADED)
def alone(request, random_qwen_folder):
    """One process: (how it was loaded, its policy, its metrics, the tolerance)."""
    loading, tolerance = LOADED[request.param]
    policy = build(random_qwen_folder, None, **loading)
    return request.param, policy, learn(policy, 3), tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_process(ran, alone, kind):
    out, seen = ran
    loaded, policy, metrics, tolerance = alone
    saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(out / kind / loaded, dtype="auto")
    before = dict(policy.reference.named_parameters())
    for name, weight in policy.module.named_parameters():
        torch.testing.assert_close(saved.get_parameter(name), weight, atol=tolerance, rtol=0)
        assert weight.requires_grad != torch.equal(weight, before[name]), "a test in which nothing moves shows nothing"
    for rank in seen:
        ours = rank[f"{kind}, {loaded}"]
        norms = [[update["policy/grad_norm"] for update in each] for each in (ours, metrics)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4 if loaded != "bfloat16" else 0.05)
        assert [update["policy/lr"] for update in ours] == pytest.approx([1e-3, 0.9e-3, 0.8e-3])
        assert ours == seen[0][f"{kind}, {loaded}"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_local_saves(ran, alone, tmp_path, kind):
    out, _ = ran
    loaded, policy, _, _ = alone
    policy.save(tmp_path)
    there = out / kind / loaded
    assert {path.name for path in there.iterdir()} == {path.name for path in tmp_path.iterdir()}
    ours, local = load_file(there / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in local.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded", LOADED)
def test_the_weights_of_a_snapshot_of_two_ranks_are_read_by_one_process_without_engine(
    ran, random_qwen_folder, kind, loaded
):
    """To the last bit what these ranks have saved; where the model is of 16 bits, the 32-bit weights rounded."""
    saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(ran[0] / kind / loaded, dtype="auto")
    module = load_model(str(random_qwen_folder), device="cpu", **LOADED[loaded][0])
    load_weights(module, ran[0] / "snapshots" / kind / loaded)
    assert differ(dict(module.named_parameters()), dict(saved.named_parameters())) == []


def test_a_snapshot_that_does_not_cover_what_is_trained_is_refused(ran, random_qwen_folder, tmp_path):
    snapshots = ran[0] / "snapshots"
    whole = load_model(str(random_qwen_folder), device="cpu")
    for kind in ("local", "zero2", "zero3"):
        with pytest.raises(ValueError, match="lacks model.visual.patch_embed.proj.weight .*model.frozen"):
            load_weights(whole, snapshots / kind / "partly frozen, checkpointed")
    shutil.copytree(snapshots / "zero3" / "plain", tmp_path / "half")
    (tmp_path / "half" / "engine_rank1.safetensors").unlink()
    with pytest.raises(ValueError, match="engine_rank1.safetensors is missing: 2 ranks wrote"):
        load_weights(whole, tmp_path / "half")
    smaller = load_model(str(random_qwen_folder), device="cpu")
    smaller.lm_head = torch.nn.Linear(32, 7, bias=False)
    with pytest.raises(ValueError, match="holds lm_head.weight, which does not fit the model"):
        load_weights(smaller, snapshots / "zero2" / "plain")
    with pytest.raises(ValueError, match="no engine has written it"):
        load_weights(whole, tmp_path)


@pytest.mark.parametrize("kind", DIVIDED)
@pytest.mark.parametrize("loaded", LOADED)
def test_a_model_is_trained_and_saved_without_a_rank_that_holds_all_of_it(ran, kind, loaded):
    assert [rank[f"{kind}, {loaded}, replica"] for rank in ran[1]] == [False] * 2


@pytest.mark.parametrize("kind", SHARDED)
def test_another_engine_gets_the_weights_and_where_they_are_divided_one_at_a_time(ran, kind):
    for rank in ran[1]:
        wrong, most = rank[f"{kind}, handed over"]
        assert wrong == [] and (most == 1 or kind not in DIVIDED)


@pytest.mark.parametrize("kind", SHARDED)
def test_bfloat16_weights_are_trained_in_32_bits(ran, kind):
    parts = load_file(ran[0] / f"{kind}_rank1.parts")
    assert parts and all(part.dtype == torch.float32 for part in parts.values())
    assert any(not torch.equal(part, part.bfloat16().float()) for part in parts.values())


@pytest.mark.parametrize("name", BESIDE)
def test_a_rank_without_any_video_works_on_the_vision_tower_too(ran, random_qwen_folder, name):
    policy = build(random_qwen_folder, None)
    learn(policy, 1, second=BESIDE[name])
    saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(ran[0] / "zero3" / name)
    for name, weight in policy.module.named_parameters():
        torch.testing.assert_close(saved.get_parameter(name), weight, atol=1e-5, rtol=0)


def test_the_memory_of_training_is_divided_among_the_ranks(ran, random_qwen_folder):
    """Of n weights one process holds 4 n bytes, and 4 n + 8 n with Adam; two ranks half of that each, but for padding:
    stage 3 fills up each of the tensors, stage 2 each of two groups, to a whole number for each rank."""
    sizes = [weight.numel() for weight in load_model(str(random_qwen_folder), device="cpu").parameters()]
    model = 4 * sum(sizes)
    for rank in ran[1]:
        for kind in SHARDED:
            own, training = rank[f"{kind}, bytes"]
            padding = 4 * (len(sizes) if kind != "zero2" else 2 * 2 * 2)
            if kind in DIVIDED:
                assert model / 2 <= own <= model / 2 + padding
            # 32-bit weights and two moments: three times the model, which is of 32 bits itself
            assert 3 * model / 2 <= training <= 3 * (model / 2 + padding)


@pytest.mark.parametrize("kind", SHARDED)
def test_a_snapshot_is_gone_on_from_bit_for_bit(ran, kind):
    assert [rank[f"{kind}, broken off"] for rank in ran[1]] == [[[], 2]] * 2


@pytest.mark.parametrize("kind", SHARDED)
def test_a_poisoned_gradient_of_one_rank_is_skipped_by_all(ran, kind):
    for first, unchanged, no_trace, skipped in (rank[f"{kind}, poisoned"] for rank in ran[1]):
        assert first == [{"policy/lr": ADAM.lr, "policy/skipped_updates": 1.0}]
        assert unchanged and no_trace and skipped == 4


@pytest.mark.parametrize("settings", [{"stage": 1}, {"stage": 2, "offload": True}])
def test_bad_settings_are_refused(settings):
    from vidbridge.policy.engines.zero import DeepSpeedConfig

    with pytest.raises(ConfigError, match=f"engine.stage must be 2, or 3 .*, got {settings['stage']} with offload="):
        DeepSpeedConfig(max_packed_tokens=1, **settings)
