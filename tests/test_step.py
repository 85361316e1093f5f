"""A whole GRPO step: what it depends on, what is sampled and scored for it, and when there is nothing to learn."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch

from tests.steps import MAX_TOKENS, Same, SameForHalf, SumOfIds, make_step, same, timeless, weights_of
from vidbridge.algo.advantages import lengths_of, overlong_penalty
from vidbridge.algo.mismatch import CORRECTIONS, PATIENCE
from vidbridge.errors import DataError, Mismatch
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import Judge, JudgeUnavailable
from vidbridge.policy.policy import frozen_copy
from vidbridge.rollout.shared_prefix import SharedPrefixRollout


class Unreachable:
    maximum = 1.0

    def __call__(self, sample, completions):
        raise JudgeUnavailable("nobody answers")


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}


@pytest.fixture(scope="module")
def folder(untrained_folder):
    return untrained_folder


@pytest.fixture
def two_threads():
    """Sums in another order show only where there is more than one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_step_depends_on_weights_seed_and_number_alone(tasks, folder, two_threads):
    one, two = make_step(tasks, folder), make_step(tasks, folder)
    first = one(0)
    again = two(0)
    assert timeless(first.metrics) == timeless(again.metrics)
    assert same(weights_of(one), weights_of(two))
    assert [g.sample.uid for g in one(1).groups] == [g.sample.uid for g in two(1).groups]
    assert not same(weights_of(one), make_step(tasks, folder).policy.module.state_dict())


def test_sampler_and_learner_agree_on_what_was_sampled(tasks, folder):
    step = make_step(tasks, folder)
    assert step(0).metrics["rollout/logprob_gap"] < 1e-4
    step.policy.temperature = 2.0  # the learner's; the rollout still samples at 1
    assert step(1).metrics["rollout/logprob_gap"] > 1e-2


@pytest.mark.parametrize("correction", sorted(set(CORRECTIONS) - {"none"}))
def test_a_correction_changes_nothing_where_sampler_and_learner_agree(tasks, folder, correction):
    plain, step = make_step(tasks, folder), make_step(tasks, folder, correction=correction)
    expected, found = plain(0).metrics, step(0).metrics
    assert expected["rollout/effective_frac"] == pytest.approx(1, abs=1e-9)
    assert found["policy/loss"] == pytest.approx(expected["policy/loss"], abs=1e-6)
    assert found["policy/grad_norm"] == pytest.approx(expected["policy/grad_norm"], rel=1e-4)


def test_a_correction_weighs_what_a_sampler_of_another_temperature_has_drawn(tasks, folder):
    """The loss is that of weights multiplied beforehand, with the ratios that the metrics tell."""
    plain, step = (make_step(tasks, folder, correction=name) for name in ("none", "token_truncation"))
    for each in (plain, step):
        each.policy.temperature = 2.0
    expected, found = plain(0), step(0)
    assert [group.completions for group in found.groups] == [group.completions for group in expected.groups]
    assert found.metrics["rollout/logprob_gap"] == expected.metrics["rollout/logprob_gap"] > 1e-2
    assert found.metrics["rollout/effective_frac"] < 0.999 and found.metrics["rollout/sampler_kl"] > 1e-4
    assert found.metrics["policy/grad_norm"] != pytest.approx(expected.metrics["policy/grad_norm"], rel=1e-3)


def test_a_run_ends_when_sampler_and_learner_stay_apart(tasks, folder):
    step = make_step(tasks, folder, max_logprob_gap=1e-3)
    step.policy.temperature = 2.0
    with pytest.raises(Mismatch, match="what is learnt is not what was sampled"):
        for number in range(PATIENCE):
            step(number)
    assert step.policy.engine.updates == PATIENCE  # not before


def test_groups_that_teach_nothing_skip_the_learner_and_change_nothing(tasks, folder, monkeypatch):
    skipping, learning = (make_step(tasks, folder, reward=SameForHalf, prompts_per_step=6) for _ in range(2))
    seen = {}
    for name, step in (("skipping", skipping), ("learning", learning)):

        def spy(groups, *rest, teaches, name=name, micro_batches=step.policy.micro_batches):
            seen[name] = sum(teaches)
            return micro_batches(groups, *rest, teaches=teaches)

        monkeypatch.setattr(step.policy, "micro_batches", spy)
    learning.algo.kl_beta = 1e-30  # then every group counts, and weighs nothing
    learning.policy.reference = frozen_copy(learning.policy.module)
    metrics, all_metrics = skipping(0).metrics, learning(0).metrics
    assert 0 < metrics["rollout/degenerate_frac"] < 1
    assert seen == {"skipping": round(6 * (1 - metrics["rollout/degenerate_frac"])), "learning": 6}
    assert metrics["policy/grad_norm"] == pytest.approx(all_metrics["policy/grad_norm"], rel=1e-4)


def test_dynamic_sampling_replaces_what_teaches_nothing(tasks, folder):
    plain = make_step(tasks, folder, reward=SameForHalf, prompts_per_step=6)(0)
    result = make_step(tasks, folder, reward=SameForHalf, prompts_per_step=6, max_refills=9)(0)
    idle = round(6 * plain.metrics["rollout/degenerate_frac"])
    assert 0 < idle < 6
    assert result.metrics["rollout/extra_groups"] >= idle and result.metrics["rollout/idle_frac"] == 0.0
    # the rewards that are logged are those of the first draw: the policy as it is, not the groups that were picked
    assert result.metrics["reward/caption/total"] == plain.metrics["reward/caption/total"]
    spreads = [max(r.total for r in g.rewards) - min(r.total for r in g.rewards) for g in result.groups]
    assert len(spreads) == 6 and min(spreads) > 0
    again = make_step(tasks, folder, reward=SameForHalf, prompts_per_step=6, max_refills=9)(0)
    assert timeless(again.metrics) == timeless(result.metrics)


def test_dynamic_sampling_gives_up(tasks, folder):
    result = make_step(tasks, folder, reward=Same, max_refills=2)(0)
    assert result.metrics["rollout/extra_groups"] == 6.0  # 2 refills of 3 groups
    assert result.metrics["rollout/idle_frac"] == 1.0
    assert len(result.groups) == 3


class Remote(Judge):
    """Knows whether it was asked."""

    waits = True

    def __init__(self):
        self.asked = threading.Event()

    def ask(self, requests):
        self.asked.set()
        return []


class Asks(SumOfIds):
    def __init__(self, judge):
        self.judge = judge

    def __call__(self, sample, completions):
        self.judge.ask([])
        return super().__call__(sample, completions)


def test_a_group_is_scored_while_others_are_decoded(tasks, folder):
    """The rollout does not return before the judge was asked about the first group; and nothing else changes."""
    plain, step, judge = make_step(tasks, folder), make_step(tasks, folder), Remote()
    step.sampler.reward = replace(step.sampler.reward, terms={"it": Asks(judge)}, judge=judge)

    class Patient(SharedPrefixRollout):
        def generate(self, *arguments, ended, **named):
            def told(*group):
                ended(*group)
                assert judge.asked.wait(timeout=10)

            return super().generate(*arguments, ended=told, **named)

    step.sampler.rollout = Patient(step.policy)
    assert timeless(step(0).metrics) == timeless(plain(0).metrics)
    assert same(weights_of(step), weights_of(plain))


def test_an_overlong_completion_earns_less(tasks, folder):
    """Siblings that earn the same differ once length counts: the learner moves, and the log says by how much."""
    plain, shaped = (make_step(tasks, folder, reward=Same, overlong_frac=frac) for frac in (0.0, 0.9))
    before = weights_of(shaped)
    results = [step(0) for step in (plain, shaped)]
    lengths = lengths_of(results[1].groups)
    assert lengths.min() < lengths.max() == MAX_TOKENS
    penalty = overlong_penalty(lengths, MAX_TOKENS, 0.9).mean().item()
    assert [result.metrics["rollout/overlong_penalty"] for result in results] == [0.0, pytest.approx(penalty)]
    # what is called the reward, and what is called degenerate, is of the task alone
    for name in ("reward/caption/total", "rollout/degenerate_frac"):
        assert results[0].metrics[name] == results[1].metrics[name]
    assert same(before, weights_of(plain)) and not same(before, weights_of(shaped))


@pytest.mark.parametrize("reward", [Same, Unreachable])
def test_nothing_is_learnt_where_nothing_can_be(tasks, folder, reward):
    step = make_step(tasks, folder, reward=reward)
    before = weights_of(step)
    result = step(0)
    assert same(before, weights_of(step))
    assert result.metrics["rollout/degenerate_frac"] == (1.0 if reward is Same else 0.0)
    assert result.metrics["rollout/judge_failed"] == (0.0 if reward is Same else 12.0)


def test_what_stands_in_the_place_of_an_unscored_completion_changes_nothing(tasks, folder):
    """Its siblings are compared with each other, and none of its tokens is learnt: any words will do."""

    class Patchy(SumOfIds):
        def __call__(self, sample, completions):
            return [math.nan, *super().__call__(sample, completions)[1:]]

    def learnt(first_words):
        step = make_step(tasks, folder, reward=Patchy, kl_beta=0.1)
        generate = step.sampler.rollout.generate

        def replaced(*args, **options):
            groups = generate(*args, **options)
            return [(replace(first, token_ids=first_words(first.token_ids)), *rest) for first, *rest in groups]

        step.sampler.rollout.generate = replaced
        result = step(0)
        assert result.metrics["rollout/judge_failed"] == 3 and result.metrics["policy/grad_norm"] > 0
        return weights_of(step)

    assert same(learnt(lambda ids: ids), learnt(lambda ids: ids[::-1]))


def test_a_row_that_cannot_be_encoded_is_named(tasks, folder):
    problem, message = "the square " * 1024, "max_prompt_tokens=1024"
    caption = tasks["caption"]
    bad = replace(caption, rows=[replace(row, problem=problem) for row in caption.rows])
    step = make_step({**tasks, "caption": bad}, folder)
    with pytest.raises(DataError, match=f"caption/train/[0-9]: .*{message}"):
        step(0)
    evaluator = Evaluator(
        tasks={"train": {"caption": bad}},
        policy=step.policy,
        processor=step.policy.processor,
        rollout=step.sampler.rollout,
        sampling=step.sampler.sampling,
        reward=step.sampler.reward,
        max_rows=4,
        seed=0,
    )
    with pytest.raises(DataError, match=f"caption/train/0: .*{message}"):
        evaluator.scores("train", num_items=1, advance=lambda done: None)


def test_metrics_name_what_was_seen(tasks, folder):
    metrics = make_step(tasks, folder)(0).metrics
    for name in ("reward/caption/total", "rollout/tokens", "rollout/truncated_frac", "policy/entropy", "time/step_s"):
        assert name in metrics
    assert metrics["rollout/well_formed_frac"] == 0.0
    assert metrics["rollout/tokens"] <= 3 * 4 * MAX_TOKENS
