"""Two ranks that share one engine of vLLM give what each would give alone: real vLLM, real processes, on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not in this environment: make test-vllm")

from tests.doors import ROOT, run  # noqa: E402
from tests.ranks import on_ranks  # noqa: E402
from tests.vllm.test_vllm import MODELS, PROMPTS, SHORT, gap, ids_of, make_policy  # noqa: E402
from vidbridge.errors import RankFailed, RolloutError  # noqa: E402
from vidbridge.rollout.shared_prefix import SharedPrefixRollout  # noqa: E402
from vidbridge.rollout.vllm import VllmRollout  # noqa: E402
from vidbridge.runtime import collectives  # noqa: E402

GREEDY = replace(SHORT, greedy=True, max_completion_tokens=40)
SIZES = {"max_rows": 64, "max_completion_tokens": 64, "cache_bytes": 2e8}
# which of the prompts each rank has
DEALT = {"both": ([0, 2, 3], [1, 4]), "one has none": (range(5), ())}


def explore(name, out):
    """What runs on each rank; its findings go to ``out``."""
    policy = make_policy(name)
    engine = VllmRollout(policy, **SIZES, tensor_parallel=2)
    encoded = [policy.processor.encode(prompt) for prompt in PROMPTS]

    def sampled(dealt, sampling=SHORT, **options):
        indices = list(DEALT[dealt][collectives.rank()])
        done = engine.generate([encoded[n] for n in indices], 2, sampling, seed=1, indices=indices, **options)
        return dict(zip(indices, done, strict=True))

    def error_of(act):
        with pytest.raises((RolloutError, RankFailed, KeyError)) as caught:
            act()
        return [type(caught.value).__name__, str(caught.value)]

    def apart():
        done = sampled("both")
        return gap(policy, [PROMPTS[n] for n in done], [encoded[n] for n in done], list(done.values()))

    seen = {"greedy": ids(sampled("both", GREEDY)), "gap": apart()}
    for dealt in DEALT:
        seen[f"sampled, {dealt}"] = ids(sampled(dealt))

    shares, ended = [], {}
    sampled("both", ended=ended.__setitem__, progress=shares.append)
    seen["told"] = [sorted(ended), shares == sorted(shares), shares[-1]]

    def refused():
        wrong = replace(encoded[0], pixel_values=encoded[0].pixel_values[:-4], uid="qa/train/7")
        engine.generate([wrong if collectives.rank() == 1 else encoded[0]], 2, SHORT, seed=1)

    def broken():
        with collectives.fail_together():  # as the step and the evaluation do
            sampled("both", ended=fails if collectives.rank() == 0 else None)

    seen["refused"] = error_of(refused)
    seen["broken"] = error_of(broken)
    seen["afterwards"] = ids(sampled("both"))

    with torch.no_grad():
        for weight in policy.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    seen["old weights, gap"] = apart()
    engine.sync(policy)
    seen["new weights, gap"] = apart()
    held = sum(weight.nbytes for weight in engine.llm.apply_model(lambda model: list(model.parameters()))[0])
    seen["part"] = held / sum(weight.nbytes for weight in policy.module.parameters())
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


def ids(groups):
    return {index: [row.token_ids for row in group] for index, group in groups.items()}


def fails(index, completions):
    raise KeyError("the judge")


@pytest.fixture(scope="module", params=MODELS)
def policy(request):
    return make_policy(request.param)


@pytest.fixture(scope="module")
def ran(policy, tmp_path_factory):
    """What each of two ranks saw."""
    out = tmp_path_factory.mktemp("ranks")
    name = policy.module.name_or_path.rpartition("/")[2]
    on_ranks(explore, name, out)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(policy):
    """An engine of one rank."""
    engine = VllmRollout(policy, **SIZES)
    yield engine
    engine.close()


def all_of(ran, key):
    """-> the ids of all prompts, each from the rank that had it"""
    found = {int(index): ids for rank in ran for index, ids in rank[key].items()}
    return [[tuple(row) for row in found[index]] for index in sorted(found)]


def test_the_completions_are_those_of_one_rank(policy, alone, ran):
    encoded = [policy.processor.encode(prompt) for prompt in PROMPTS]
    ours = SharedPrefixRollout(policy).generate(encoded, 2, GREEDY, seed=0)
    assert all_of(ran, "greedy") == ids_of(ours)
    expected = ids_of(alone.generate(encoded, 2, SHORT, seed=1))
    for dealt in DEALT:
        assert all_of(ran, f"sampled, {dealt}") == expected
    assert max(rank["gap"] for rank in ran) < 1e-4


def test_each_rank_is_told_of_its_own_prompts(ran):
    assert [rank["told"] for rank in ran] == [[[0, 2, 3], True, 1.0], [[1, 4], True, 1.0]]


def test_an_error_of_one_rank_is_raised_on_both_and_both_go_on(ran):
    (kind, message), (other_kind, other_message) = (rank["refused"] for rank in ran[::-1])
    assert kind == "RolloutError" and message.startswith("qa/train/7: ") and "do not fit together" in message
    assert other_kind == "RankFailed" and other_message == f"rank 1 failed: RolloutError: {message}"
    assert [rank["broken"] for rank in ran] == [
        ["KeyError", "'the judge'"],
        ["RankFailed", "rank 0 failed: KeyError: 'the judge'"],
    ]
    assert all_of(ran, "afterwards") == all_of(ran, "sampled, both")


def test_new_weights_are_sampled_from_and_each_rank_holds_a_part(ran):
    for rank in ran:
        assert rank["old weights, gap"] > 1e-2 and rank["new weights, gap"] < 1e-4
        assert rank["part"] < 0.6  # half, with norms and what fills up the vocabulary


def test_a_run_from_the_command_line(tmp_path):
    sizes = ["steps=2", "prompts_per_step=4", "algo.group_size=4"]
    few = ["eval.num_items=2", "eval.every=0", "track=none", "data.num_rows={train: 8, val: 2, test: 4}"]
    shared = ["rollout=vllm", "rollout.tensor_parallel=2", "rollout.cache_gb=0.2", "nproc=2", "engine=zero3"]
    where = [f"hydra.run.dir={tmp_path / 'run'}", f"paths.cache={tmp_path / 'cache'}"]
    done = run(ROOT / "train.py", *shared, *sizes, *few, *where, TORCHDYNAMO_DISABLE="1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["rollout/logprob_gap"] for row in rows if "policy/lr" in row]
    assert len(gaps) == 2 and max(gaps) < 1e-4
