"""One step ahead: from which weights a batch is sampled, what is learnt from it, and what a checkpoint holds."""

from __future__ import annotations

import copy
import math
import threading

import pytest

from tests.steps import MAX_TOKENS, make_step, same, timeless, weights_of
from vidbridge.errors import CheckpointError, RolloutLost
from vidbridge.policy.policy import Policy
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import SamplingParams

SAMPLING = SamplingParams(max_completion_tokens=MAX_TOKENS)


class Elsewhere(SharedPrefixRollout):
    """Our own rollout with weights of its own, in a thread."""

    lost = False

    def sync(self, policy):
        super().sync(Policy(copy.deepcopy(policy.module), policy.processor))

    def start(self, *arguments, **named):
        return InThread(self, lambda: self.generate(*arguments, **named))


class InThread:
    def __init__(self, rollout, generate):
        self.rollout, self.found = rollout, None
        self.thread = threading.Thread(target=lambda: setattr(self, "found", generate()))
        self.thread.start()

    def finish(self):
        self.thread.join()
        if self.rollout.lost:
            raise RolloutLost("no server")
        return self.found

    def again(self):
        return ()


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}


def ahead(tasks, folder, **options):
    return make_step(tasks, folder, rollout=Elsewhere, ahead=True, last=3, **options)


def ids_of(groups):
    return [[done.token_ids for done in group.completions] for group in groups]


def test_a_batch_is_sampled_from_the_weights_before_the_last_update(tasks, untrained_folder):
    step, before, results = ahead(tasks, untrained_folder), [], []
    for number in range(4):
        before.append(copy.deepcopy(step.policy.module))
        results.append(step(number))
    sampled_by = [before[0], before[0], before[1], before[2]]
    for number, (module, result) in enumerate(zip(sampled_by, results)):
        rollout = SharedPrefixRollout(Policy(module, step.policy.processor))
        encoded = [group.encoded for group in result.groups]
        assert ids_of(result.groups) == [
            [done.token_ids for done in group] for group in rollout.generate(encoded, 4, SAMPLING, seed=number)
        ]
    assert [result.metrics["rollout/stale_frac"] for result in results] == [0.0, 1.0, 1.0, 1.0]


def test_it_learns_the_same_in_the_first_step_and_from_the_same_prompts_later(tasks, untrained_folder):
    one, two = ahead(tasks, untrained_folder), make_step(tasks, untrained_folder)
    first, second = one(0), two(0)
    assert ids_of(first.groups) == ids_of(second.groups)
    assert first.metrics["policy/grad_norm"] == pytest.approx(second.metrics["policy/grad_norm"], rel=1e-4)
    assert [g.sample.uid for g in one(1).groups] == [g.sample.uid for g in two(1).groups]


def test_the_old_log_probabilities_are_those_that_sampled(tasks, untrained_folder):
    """The ratio that is clipped is learner to sampler: its largest value is exp of the largest log-ratio."""
    step = ahead(tasks, untrained_folder)
    step(0)
    metrics = step(1).metrics
    assert metrics["rollout/logprob_gap_max"] > 1e-3  # an update lies between them
    assert 0 < abs(math.log(metrics["policy/ratio_max"])) <= metrics["rollout/logprob_gap_max"] * (1 + 1e-4)


def test_with_a_correction_the_learner_is_its_own_old_policy(tasks, untrained_folder):
    step = ahead(tasks, untrained_folder, correction="token_truncation")
    step(0)
    metrics = step(1).metrics
    assert metrics["policy/ratio_max"] == 1.0 and metrics["rollout/logprob_gap_max"] > 1e-3


def test_refills_are_sampled_from_the_weights_of_now(tasks, untrained_folder):
    step = ahead(tasks, untrained_folder, max_refills=1)
    for number in range(3):
        assert "rollout/extra_groups" in step(number).metrics


def test_a_checkpoint_holds_the_batch_that_waits(tasks, untrained_folder, tmp_path):
    step = ahead(tasks, untrained_folder)
    step(0), step(1)
    step.sampler.snapshot()(tmp_path)
    weights, optimizer = weights_of(step), copy.deepcopy(step.policy.engine.optimizer.state_dict())
    wanted = step(2)

    resumed = ahead(tasks, untrained_folder)
    resumed.policy.module.load_state_dict(weights)
    resumed.policy.engine.optimizer.load_state_dict(optimizer)
    resumed.policy.engine.updates = 2
    resumed.sampler.load(tmp_path)
    found = resumed(2)
    assert ids_of(found.groups) == ids_of(wanted.groups)
    assert timeless(found.metrics) == timeless(wanted.metrics)
    assert same(weights_of(resumed), weights_of(step))
    assert ids_of(resumed(3).groups) == ids_of(step(3).groups)


def test_after_the_last_step_nothing_waits(tasks, untrained_folder, tmp_path):
    step = ahead(tasks, untrained_folder)
    for number in range(4):
        step(number)
    step.sampler.snapshot()(tmp_path)
    assert not list(tmp_path.iterdir())
    step.sampler.load(tmp_path)  # nothing to go on from


def test_rows_that_have_changed_since_are_noticed(tasks, untrained_folder, tmp_path):
    step = ahead(tasks, untrained_folder)
    step(0)
    step.sampler.snapshot()(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("caption/", "captions/").replace("mix_vid_qa/", "mix/"))
    other = ahead(tasks, untrained_folder)
    other.sampler.load(tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint holds completions of .* for step 2, the data give"):
        other(1)


def test_a_checkpoint_without_servers_leaves_the_batch_to_be_sampled_again(tasks, untrained_folder, tmp_path):
    step = ahead(tasks, untrained_folder)
    step(0)
    step.sampler.rollout.lost = True
    step.sampler.snapshot()(tmp_path)
    assert not list(tmp_path.iterdir())
    step.sampler.rollout.lost = False
    assert step(1).metrics["rollout/stale_frac"] == 0.0


def test_a_lost_rollout_ends_the_step_and_the_next_try_samples_again(tasks, untrained_folder):
    step = ahead(tasks, untrained_folder)
    step(0)
    before = weights_of(step)
    step.sampler.rollout.lost = True
    with pytest.raises(RolloutLost):
        step(1)
    assert same(weights_of(step), before)
    step.sampler.rollout.lost = False
    assert step(1).metrics["rollout/stale_frac"] == 0.0
