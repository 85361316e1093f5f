"""What a step learns: its loss by hand, its gradients against those of plain calls, whatever the micro-batches."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from experiments.bench.learner import relative_error
from tests.steps import MAX_TOKENS, make_step, same, timeless, weights_of
from vidbridge.algo.advantages import SCALES, group_advantages, rewards_of
from vidbridge.algo.objectives import grpo_loss
from vidbridge.algo.token_weights import LossNorm, token_weights
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.plain import repeated_logprobs
from vidbridge.step_metrics import LearnerMetrics


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}


@pytest.fixture(scope="module")
def folder(untrained_folder):
    return untrained_folder


def test_on_policy_loss_by_hand(tasks, folder):
    """With ratio 1 the loss is minus the sum of weight * advantage: advantages of a group sum to 0, and with
    ``sequence`` every row weighs 1 / N, so the loss is 0; with ``token`` long rows weigh more."""
    result = make_step(tasks, folder)(0)
    assert result.metrics["policy/ratio_max"] == 1.0 and result.metrics["policy/clip_high_frac"] == 0.0
    assert result.metrics["policy/loss"] == pytest.approx(0.0, abs=1e-5)

    result = make_step(tasks, folder, loss_norm=LossNorm.token, advantage_scale="none")(0)
    totals = rewards_of(result.groups)
    advantages = (totals - totals.mean(dim=1, keepdim=True)).flatten()
    lengths = torch.tensor([len(done.token_ids) for group in result.groups for done in group.completions])
    expected = -(advantages * lengths).sum() / lengths.sum()
    # the metric is a mean over two micro-batches of parts that add up, scaled back to the sum
    assert result.metrics["policy/loss"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("norm", LossNorm)
def test_cutting_into_micro_batches_changes_nothing(tasks, folder, norm):
    whole = make_step(tasks, folder, max_packed_tokens=4096, loss_norm=norm)
    parts = make_step(tasks, folder, max_packed_tokens=1, loss_norm=norm)
    norms = whole(0).metrics["policy/grad_norm"], parts(0).metrics["policy/grad_norm"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0


def test_metrics_do_not_depend_on_the_cut_into_micro_batches(tasks, folder):
    # three groups as 1 + 1 + 1, as 2 + 1 (parts of unequal weight) and as one
    metrics = [
        timeless(make_step(tasks, folder, max_packed_tokens=size, ppo_epochs=2, kl_beta=0.1)(0).metrics)
        for size in (1, 400, 4096)
    ]
    assert metrics[0] == pytest.approx(metrics[2], rel=1e-3, abs=1e-5)
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-3, abs=1e-5)
    assert metrics[2]["policy/clip_low_frac"] + metrics[2]["policy/clip_high_frac"] > 0  # there is something to weigh


def test_means_by_hand():
    means = LearnerMetrics()
    means.add({"kl": 1.0, "ratio_max": 3.0, "clip": 0.5}, weight=1)
    means.add({"kl": 5.0, "ratio_max": 2.0}, weight=3)
    means.add({"clip": 0.1, "idle": 0.7}, weight=0)
    assert means.result() == {"kl": 4.0, "ratio_max": 3.0, "clip": 0.5, "idle": 0.0}  # (1 + 3 * 5) / 4


def test_a_second_epoch_moves_off_policy_and_makes_a_second_update(tasks, folder):
    step = make_step(tasks, folder, ppo_epochs=2)
    result = step(0)
    assert result.metrics["policy/ratio_max"] > 1.0  # in the first epoch it is exactly 1
    assert step.policy.engine.updates == 2


def test_two_epochs_with_kl_have_the_gradients_of_repeated_rows(tasks, folder, monkeypatch):
    """Each update of the step against plain Hugging Face calls with the same weights, one row a completion."""
    step = make_step(tasks, folder, ppo_epochs=2, kl_beta=0.1)
    policy, engine = step.policy, step.policy.engine
    seen, update = [], engine.update

    def spied():
        seen.append((weights_of(step), [weight.grad.clone() for weight in engine.trained]))
        return update()

    monkeypatch.setattr(engine, "update", spied)
    groups = step(0).groups
    advantages = group_advantages(rewards_of(groups), SCALES[step.algo.advantage_scale]).flatten()
    mask = loss_mask(groups)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)

    def logprobs():
        return repeated_logprobs(plain, groups, temperature=1.0, suppressed_ids=policy.suppressed_ids)

    old = logprobs().detach()
    for weights, found in seen:
        plain.load_state_dict(weights)
        plain.zero_grad()
        grpo_loss(
            logprobs(),
            old_logprobs=old,
            ref_logprobs=old,
            advantages=advantages,
            loss_mask=mask,
            token_weights=token_weights(mask, step.algo.loss_norm, MAX_TOKENS),
            clip_low=step.algo.clip_low,
            clip_high=step.algo.clip_high,
            kl_beta=step.algo.kl_beta,
        ).loss.backward()
        expected = [weight.grad for weight in plain.parameters()]
        assert relative_error(found, expected) < 1e-5
    assert len(seen) == 2 and not same(seen[0][0], seen[1][0])


def test_the_reference_stays_where_it_was(tasks, folder):
    step = make_step(tasks, folder, kl_beta=0.1)
    assert step(0).metrics["policy/kl"] == pytest.approx(0.0, abs=1e-6)
    # 3e-4 is what one update of 1e-3 moves at least
    assert step(1).metrics["policy/kl"] > 1e-5
    assert "policy/kl" not in make_step(tasks, folder)(0).metrics
