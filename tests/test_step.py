"""A whole GRPO step on real parts: clips from mp4 files, a small random model, a reward that tells siblings apart."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from experiments.bench.learner import relative_error
from experiments.bench.peers import repeated_logprobs
from tests.conftest import SHAPES_FRAMES
from vidbridge.algo.advantages import AdvantageScale, group_advantages, overlong_penalty
from vidbridge.algo.loss import LossNorm, grpo_loss, token_weights
from vidbridge.config import GrpoConfig
from vidbridge.data.mixture import Mixture
from vidbridge.diagnostics import Diagnostics
from vidbridge.evaluate import Evaluator
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.policy.engine_local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy, frozen_copy
from vidbridge.rewards.base import GatedSum
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.step import GrpoStep, Means, lengths_of, rewards_of, scored
from vidbridge.tasks.base import DataError

MAX_TOKENS = 6


class SumOfIds:
    """Any number that differs between siblings."""

    maximum = 1.0

    def __call__(self, sample, completions):
        return [sum(completion.token_ids) % 7 / 7 for completion in completions]


class Same:
    maximum = 1.0

    def __call__(self, sample, completions):
        return [0.7] * len(completions)


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


def make_step(
    tasks,
    folder,
    *,
    reward=SumOfIds,
    prompts_per_step=3,
    max_packed_tokens=400,
    engine=LocalEngine,
    bad=None,
    every=0,
    **algo,
):
    module = load_model(str(folder), device="cpu")
    processor = Processor.from_folder(folder, SHAPES_FRAMES, max_prompt_tokens=1024)
    config = GrpoConfig(**{"group_size": 4, **algo})
    reference = frozen_copy(module) if config.kl_beta > 0 else None
    policy = QwenVLPolicy(
        module,
        processor,
        engine(module, lr=1e-3, total_updates=10, schedule="constant", max_grad_norm=1e9),
        max_packed_tokens=max_packed_tokens,
        reference=reference,
    )
    return GrpoStep(
        mixture=Mixture(tasks, {"caption": 1, "mix_vid_qa": 1}, prompts_per_step=prompts_per_step, seed=0),
        processor=processor,
        rollout=SharedPrefixRollout(policy, max_completion_tokens=MAX_TOKENS),
        reward=GatedSum(gates={}, terms={"it": reward()}, weights={name: {"it": 1.0} for name in tasks}),
        policy=policy,
        algo=config,
        max_completion_tokens=MAX_TOKENS,
        bad=bad,
        diagnostics=Diagnostics(module=module, processor=processor, every=every) if every else None,
    )


def weights_of(step):
    return copy.deepcopy(step.policy.module.state_dict())


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


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


def test_on_policy_loss_by_hand(tasks, folder):
    """With ratio 1 the loss is minus the sum of weight * advantage: advantages of a group sum to 0, and with
    ``sequence`` every row weighs 1 / N, so the loss is 0; with ``token`` long rows weigh more."""
    result = make_step(tasks, folder)(0)
    assert result.metrics["policy/ratio_max"] == 1.0 and result.metrics["policy/clip_high_frac"] == 0.0
    assert result.metrics["policy/loss"] == pytest.approx(0.0, abs=1e-5)

    result = make_step(tasks, folder, loss_norm=LossNorm.token, advantage_scale=AdvantageScale.none)(0)
    totals = rewards_of(result.groups, 4)
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
    means = Means()
    means.add({"kl": 1.0, "ratio_max": 3.0, "clip": 0.5}, weight=1)
    means.add({"kl": 5.0, "ratio_max": 2.0}, weight=3)
    means.add({"clip": 0.1, "idle": 0.7}, weight=0)
    assert means.result() == {"kl": 4.0, "ratio_max": 3.0, "clip": 0.5, "idle": 0.0}  # (1 + 3 * 5) / 4


def test_sampler_and_learner_agree_on_what_was_sampled(tasks, folder):
    step = make_step(tasks, folder)
    assert step(0).metrics["rollout/logprob_gap"] < 1e-4
    step.policy.temperature = 2.0  # the learner's; the rollout still samples at 1
    assert step(1).metrics["rollout/logprob_gap"] > 1e-2


class SameForHalf:
    """Tells the siblings of every other question apart, by its wording."""

    maximum = 1.0

    def __call__(self, sample, completions):
        same = sum(map(ord, sample.uid)) % 2 == 0
        return [0.5 if same else sum(done.token_ids) % 7 / 7 for done in completions]


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
        generate = step.rollout.generate

        def replaced(*args, **options):
            groups = generate(*args, **options)
            return [(replace(first, token_ids=first_words(first.token_ids)), *rest) for first, *rest in groups]

        step.rollout.generate = replaced
        result = step(0)
        assert result.metrics["rollout/judge_failed"] == 3 and result.metrics["policy/grad_norm"] > 0
        return weights_of(step)

    assert same(learnt(lambda ids: ids), learnt(lambda ids: ids[::-1]))


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
    advantages = group_advantages(rewards_of(groups, 4), scored(groups), step.algo.advantage_scale).flatten()
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


@pytest.mark.parametrize(
    ("problem", "message"),
    [("What is <|video_pad|>?", "2 video placeholders for 1 clips"), ("the square " * 1024, "max_prompt_tokens=1024")],
)
def test_a_row_that_cannot_be_encoded_is_named(tasks, folder, problem, message):
    caption = tasks["caption"]
    bad = caption.with_rows([replace(row, problem=problem) for row in caption.rows], SHAPES_FRAMES)
    step = make_step({**tasks, "caption": bad}, folder)
    with pytest.raises(DataError, match=f"caption/train/[0-9]: .*{message}"):
        step(0)
    evaluator = Evaluator(
        tasks={"train": {"caption": bad}},
        policy=step.policy,
        processor=step.processor,
        rollout=step.rollout,
        reward=step.reward,
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
