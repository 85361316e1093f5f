"""What runs on a GPU, on a pretended one: nothing meets a tensor of another device, and the numbers are the CPU's."""

from __future__ import annotations

import json

import pytest
import torch

from experiments.bench import gpu, plan
from experiments.bench.harness import seconds_of
from tests.policy.builders import make_policy, ragged_prompts, random_groups, whole_batch
from tests.pretend_cuda import DEVICE, Graph, OnDevice, pretend_cuda
from tests.rollout.builders import sampler
from tests.steps import SameForHalf, make_step, timeless
from vidbridge.policy.adapters import LoraConfig, adapted_layers
from vidbridge.rollout.decode_step import DecodeStep
from vidbridge.rollout.kv_cache import Decode, SharedPrefixCache

__all__ = ["pretend_cuda"]  # a fixture
LENGTHS = [[5, 9, 2, 7], [3, 3, 12, 4], [6], [4, 4]]  # the fourth prompt has no video


def both(folder, **options):
    """The same policy on the CPU and on the device."""
    return [make_policy(folder, temperature=0.7, device=device, **options) for device in ("cpu", "cuda")]


@pytest.mark.parametrize(
    ("dtype", "checkpointing"), [("float32", False), pytest.param("bfloat16", True, marks=pytest.mark.slow)]
)
def test_learner(random_qwen_folder, pretend_cuda, dtype, checkpointing):
    """Log-probabilities, entropies and the new 32-bit weights after two micro-batches and an update."""
    results = []
    for policy in both(random_qwen_folder, dtype=dtype, gradient_checkpointing=checkpointing):
        groups = random_groups(policy, LENGTHS)
        found = []
        for part in (groups[:1], groups[1:]):
            batch = whole_batch(policy, part).to(policy.module.device)
            logprobs, entropies = policy.logprobs(batch)
            policy.backward(-(logprobs * batch.loss_mask).sum())
            found += [logprobs.detach().cpu(), entropies.cpu()]
        assert logprobs.device == entropies.device == policy.module.device
        results.append((found, policy.update(), [weight.detach().cpu() for weight in policy.engine.masters]))
    (found, metrics, weights), (found_there, metrics_there, weights_there) = results
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found_there, found, **tolerance)
    assert metrics_there == pytest.approx(metrics, rel=1e-3 if dtype == "float32" else 0.05)
    torch.testing.assert_close(weights_there, weights, rtol=0, atol=2.1e-3)  # lr 1e-3, either way


@pytest.mark.parametrize("adapter", [None, LoraConfig()])
def test_rollout(random_qwen_folder, pretend_cuda, monkeypatch, adapter):
    """Captured again when room grows and when rows leave; every other token is a replay. Tokens as on the CPU."""
    monkeypatch.setattr("vidbridge.rollout.kv_cache.FIRST_COLUMNS", 3)
    versions, step = [], DecodeStep.__call__

    def counted(self, *inputs):
        logits = step(self, *inputs)
        versions.append((id(self), self.cache.version))
        return logits

    monkeypatch.setattr(DecodeStep, "__call__", counted)
    here, there = both(random_qwen_folder, adapter=adapter)
    with torch.no_grad():
        for layer in (*adapted_layers(here.module).values(), *adapted_layers(there.module).values()):
            layer.lora_B["default"].weight.fill_(0.1)  # new ones add nothing
    encoded = [here.processor.encode(prompt) for prompt in ragged_prompts()]
    groups = []
    for policy in (here, there):
        versions.clear()
        rollout = sampler(policy, max_completion_tokens=24, temperature=0.7, stop=("grows",), top_p=0.95)
        groups.append([done for group in rollout.generate(encoded, 8, seed=1) for done in group])
    assert [done.token_ids for done in groups[1]] == [done.token_ids for done in groups[0]]
    for one, other in zip(*groups, strict=True):
        assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-4)
    assert len(versions) > pretend_cuda.captured == len(set(versions)) > 3


def test_step_with_all_there_is(shapes_tasks, untrained_folder, pretend_cuda):
    """A reference, refills, two epochs and the gradients' diagnosis; sampler and learner agree."""
    tasks = {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}
    options = {"reward": SameForHalf, "kl_beta": 0.1, "max_refills": 1, "ppo_epochs": 2, "every": 1}
    here, there = (make_step(tasks, untrained_folder, device=device, **options) for device in ("cpu", "cuda"))
    one, other = here(0), there(0)
    assert [g.completions[0].token_ids for g in other.groups] == [g.completions[0].token_ids for g in one.groups]
    assert timeless(other.metrics) == pytest.approx(timeless(one.metrics), rel=1e-2, abs=1e-3)
    assert other.metrics["rollout/logprob_gap_max"] < 1e-3
    assert all(isinstance(weight, OnDevice) for weight in there.policy.module.parameters())


def test_a_checkpoint_goes_from_one_device_to_the_other(random_qwen_folder, pretend_cuda, tmp_path):
    here, there = both(random_qwen_folder)
    for policy, other in ((here, there), (there, here)):
        batch = whole_batch(policy, random_groups(policy, LENGTHS[:1])).to(policy.module.device)
        policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
        policy.update()
        policy.engine.snapshot()(tmp_path)
        other.engine.load(tmp_path)
        for one, two in zip(here.module.parameters(), there.module.parameters(), strict=True):
            assert torch.equal(one, two.detach().cpu())
        assert {value.device for state in other.engine.optimizer.state.values() for value in state.values()} == {
            other.module.device
        }


@pytest.mark.slow
def test_gpu_bench(pretend_cuda, monkeypatch, tmp_path):
    """Every part of it, each called once."""
    monkeypatch.setattr(gpu, "medians", lambda calls, repeats: {name: seconds_of(call) for name, call in calls.items()})
    path = tmp_path / "figures.json"
    assert gpu.main(["--quick", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["gpu"] == "pretended" and [row["part"] for row in figures["rows"]] == list(gpu.PARTS)


@pytest.mark.slow
def test_plan_bench(pretend_cuda):
    assert set(plan.measure(plan.Setting(device="cuda", quick=True))) == {"rollout", "learner"}


class TestThePretendedDevice:
    """It must be able to say no."""

    def test_tensors_of_two_devices_do_not_meet(self, pretend_cuda):
        there = torch.ones(3, device="cuda")
        assert there.is_cuda and there.device == DEVICE and (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="one device"):
            torch.nn.functional.embedding(torch.tensor([0, 1]), there[:, None])
        assert type((there.cpu() + torch.ones(3))) is torch.Tensor

    @pytest.mark.parametrize(
        "waits",
        [
            lambda there: there.sum().item(),
            lambda there: there.tolist(),
            lambda there: bool((there > 0).all()),
            lambda there: there[there > 0],
            lambda there: there + torch.ones(3).to("cuda"),
            lambda there: there + torch.tensor([1.0], device="cuda"),
        ],
    )
    def test_the_host_neither_waits_nor_sends_within_a_capture(self, pretend_cuda, waits):
        there = torch.ones(3, device="cuda")
        waits(there)
        with pytest.raises(AssertionError), torch.cuda.graph(Graph()):
            waits(there)

    def test_a_graph_computes_when_it_is_replayed_and_where_it_was_captured(self, pretend_cuda):
        one, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            twice = (2 * one).view(3)
            total += twice
        assert twice.isnan().all() and total.tolist() == [0, 0, 0]
        graph.replay()
        one.fill_(5)
        graph.replay()
        assert twice.tolist() == [10, 10, 10] and total.tolist() == [12, 12, 12]

    def test_a_graph_of_tensors_that_were_replaced_is_found_out(self, random_qwen_folder, pretend_cuda, monkeypatch):
        """A cache that gets new tensors without a new version: the fault that a capture is most likely to have."""
        _, there = both(random_qwen_folder)
        encoded = [there.processor.encode(ragged_prompts()[0])]
        monkeypatch.setattr("vidbridge.rollout.kv_cache.FIRST_COLUMNS", 3)
        stuck = property(lambda self: 1, lambda self, value: None)
        monkeypatch.setattr(SharedPrefixCache, "version", stuck, raising=False)
        with pytest.raises(IndexError):
            sampler(there, max_completion_tokens=8).generate(encoded, 4, seed=1)

    def test_a_mask_that_asks_the_host_is_found_out(self, random_qwen_folder, pretend_cuda, monkeypatch):
        made = Decode.__init__

        def asking(self, cache, column, visible):
            made(self, cache, column, visible)
            self.hidden = self.hidden if self.hidden.any() else None

        monkeypatch.setattr(Decode, "__init__", asking)
        _, there = both(random_qwen_folder)
        with pytest.raises(AssertionError, match="wait"):
            sampler(there, max_completion_tokens=4).generate(
                [there.processor.encode(ragged_prompts()[0])], 2, seed=0
            )
