"""Two ranks take the step, the evaluation and the fine-tuning step of one process: same batch, scores, weights."""

import json
from dataclasses import replace
from functools import partial

import pytest

from tests.data.test_loader import broken
from tests.ranks import on_ranks
from tests.steps import MAX_TOKENS, Same, SameForHalf, SumOfIds, make_step, timeless
from vidbridge.algo.token_weights import LossNorm
from vidbridge.config.schema import SftStage
from vidbridge.data.loader import BadSamples
from vidbridge.errors import DataError, JudgeLost, RankFailed
from vidbridge.evaluation.evaluator import Evaluator
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.rewards.base import UNSCORED
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.runtime import collectives
from vidbridge.sft_step import SftStep
from vidbridge.types import SamplingParams


class Patchy(SumOfIds):
    """Leaves a completion here and there without a number, and whole groups."""

    def __call__(self, sample, completions):
        if sum(completions[0].token_ids) % 3 == 0:
            raise JudgeUnavailable("busy")
        return [UNSCORED if number > 0.7 else number for number in super().__call__(sample, completions)]


# five prompts, so that ranks have 3 and 2, in rows of one group each: 3 micro-batches and 2
STEPS = {
    "grpo": {},
    "every term": {
        "kl_beta": 0.1,
        "ppo_epochs": 2,
        "loss_norm": LossNorm.token,
        "advantage_scale": "batch_std",
    },
    "refilled": {"reward": SameForHalf, "max_refills": 4},
    "some idle": {"reward": SameForHalf},
    "all idle": {"reward": Same},
    "some unscored": {"reward": Patchy, "loss_norm": LossNorm.token},
    "bad videos": {"bad_rows": range(0, 12, 3)},
    "looked at": {"every": 1},
    "all idle, looked at": {"reward": Same, "every": 1},
}


def sharded(module, optim, *, total_updates):
    from vidbridge.policy.engines.zero import DeepSpeedEngine  # takes seconds to import

    return DeepSpeedEngine(module, optim, total_updates=total_updates, stage=3, kept_whole=0)


ENGINES = {"local": LocalEngine, "zero3": sharded}


def steps_of(tasks, folder, engine, options):
    """Two steps -> their metrics, what was sampled and earned, and a number that tells the weights."""
    options = {"reward": SumOfIds, "prompts_per_step": 5, "max_packed_tokens": 1, **options}
    if bad_rows := options.pop("bad_rows", ()):
        tasks = {name: broken(task, *bad_rows) for name, task in tasks.items()}
        options["bad"] = BadSamples(max_frac=0.5)
    step = make_step(tasks, folder, engine=engine, **options)
    results = [step(0), step(1)]
    groups = [
        [
            group.sample.uid,
            [done.token_ids for done in group.completions],
            [reward.total if reward.scored else None for reward in group.rewards],
        ]
        for result in results
        for group in result.groups
    ]
    weights = [weight.double().square().sum().item() for weight in step.policy.whole().parameters()]
    return {"metrics": [timeless(result.metrics) for result in results], "groups": groups, "weights": weights}


def scores_of(tasks, folder, engine):
    """After a step, so that a replica which was not brought up to date would show."""
    step = make_step(tasks, folder, engine=engine)
    step(0)
    evaluator = Evaluator(
        tasks={"test": tasks},
        policy=step.policy,
        processor=step.policy.processor,
        rollout=SharedPrefixRollout(step.policy),
        sampling=SamplingParams(max_completion_tokens=MAX_TOKENS),
        reward=step.sampler.reward,
        max_rows=4,
        seed=0,
    )
    scores = evaluator.scores("test", num_items=7, num_samples=2, advance=lambda done: None)
    return {**scores.to_dict(), "shown": [group.sample.uid for group in scores.shown]}


def sft_of(tasks, folder, engine):
    policy = make_step(tasks, folder, engine=engine, max_packed_tokens=1).policy
    stages = [SftStage(steps=2, shares={"caption": 1, "mix_vid_qa": 1}, blind=["mix_vid_qa"])]
    step = SftStep(
        stages, tasks=tasks, processor=policy.processor, policy=policy, prompts_per_step=5, seed=0
    )
    metrics = [timeless(step(number).metrics) for number in range(2)]
    return {"metrics": metrics, "weights": [w.double().square().sum().item() for w in policy.whole().parameters()]}


def failed_of(tasks, folder):
    """The first rank meets a row that cannot be encoded: -> the error of each."""
    step = make_step(tasks, folder, prompts_per_step=4)
    if collectives.is_rank_0():
        caption = tasks["caption"]
        rows = [replace(row, problem="the square " * 1024) for row in caption.rows]
        step = make_step({**tasks, "caption": replace(caption, rows=rows)}, folder, prompts_per_step=4)
    with pytest.raises((DataError, RankFailed)) as caught:
        step(0)
    return [type(caught.value).__name__, str(caught.value)]


class LostHere:
    """The judge of the second rank has been without a reply for too long."""

    maximum = 1.0

    def __call__(self, sample, completions):
        if collectives.rank() == 1:
            raise JudgeLost("no reply from http://here")
        return [0.0] * len(completions)


def lost_of(tasks, folder):
    with pytest.raises((JudgeLost, RankFailed)) as caught:
        make_step(tasks, folder, reward=LostHere)(0)
    return [type(caught.value).__name__, str(caught.value)]


def explore(tasks, folder, out):
    seen = {}
    for name, engine in ENGINES.items():
        for options in STEPS:
            seen[f"{name}, {options}"] = steps_of(tasks, folder, engine, STEPS[options])
        seen[f"{name}, scores"] = scores_of(tasks, folder, engine)
        seen[f"{name}, sft"] = sft_of(tasks, folder, engine)
    seen["failed"] = failed_of(tasks, folder)
    seen["lost"] = lost_of(tasks, folder)
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}


@pytest.fixture(scope="module")
def ran(tasks, untrained_folder, tmp_path_factory):
    """What each of two ranks saw."""
    out = tmp_path_factory.mktemp("ranks")
    on_ranks(explore, tasks, untrained_folder, out)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tasks, untrained_folder):
    """What one process sees, each computed once."""
    known = {}

    def look(what, *arguments):
        if (key := (what, *map(str, arguments))) not in known:
            known[key] = json.loads(json.dumps(what(tasks, untrained_folder, LocalEngine, *arguments)))
        return known[key]

    return look


close = partial(pytest.approx, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", STEPS)
def test_two_ranks_take_the_step_of_one(ran, alone, options, engine):
    expected = alone(steps_of, STEPS[options])
    for rank in ran:
        seen = rank[f"{engine}, {options}"]
        assert seen["groups"] == expected["groups"]
        # biases begin at 0, and where a gradient is next to nothing Adam makes a whole step of how it was rounded
        assert seen["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-7)
        for ours, theirs in zip(seen["metrics"], expected["metrics"], strict=True):
            assert ours == close(theirs)
        assert seen["metrics"] == ran[0][f"{engine}, {options}"]["metrics"]


def test_there_was_something_to_tell_apart(alone):
    """The cases are what their names say, and weights that were not trained would show."""
    weights = {options: alone(steps_of, STEPS[options])["weights"] for options in STEPS}
    assert weights["grpo"] != close(weights["all idle"], rel=1e-4)
    idle = {name: alone(steps_of, STEPS[name])["metrics"][0]["rollout/degenerate_frac"] for name in STEPS}
    assert idle["grpo"] < idle["some idle"] < idle["all idle"] == 1.0
    assert alone(steps_of, STEPS["refilled"])["metrics"][0]["rollout/extra_groups"] > 0
    totals = [totals for _, _, totals in alone(steps_of, STEPS["some unscored"])["groups"]]
    assert [None] * 4 in totals and any(None in group and len(set(group)) > 2 for group in totals)
    assert sum(metrics["data/bad"] for metrics in alone(steps_of, STEPS["bad videos"])["metrics"]) > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_give_the_scores_of_one(ran, alone, engine):
    for rank in ran:
        assert rank[f"{engine}, scores"] == alone(scores_of)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_fine_tune_as_one(ran, alone, engine):
    expected = alone(sft_of)
    for rank in ran:
        seen = rank[f"{engine}, sft"]
        assert seen["weights"] == pytest.approx(expected["weights"], rel=1e-4)
        assert [metrics == close(theirs) for metrics, theirs in zip(seen["metrics"], expected["metrics"])] == [True] * 2


def test_an_error_of_one_rank_ends_the_step_of_all(ran):
    (kind, message), (other_kind, other_message) = (rank["failed"] for rank in ran)
    assert kind == "DataError" and "max_prompt_tokens=1024" in message
    assert other_kind == "RankFailed" and other_message == f"rank 0 failed: DataError: {message}"


def test_a_rank_that_has_lost_its_judge_stops_all(ran):
    assert [rank["lost"] for rank in ran] == [
        ["RankFailed", "rank 1 failed: JudgeLost: no reply from http://here"],
        ["JudgeLost", "no reply from http://here"],
    ]
