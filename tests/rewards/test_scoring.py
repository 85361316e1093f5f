import math
import threading
from dataclasses import replace

import pytest
import torch

from tests.rewards.builders import raw, said, sample
from vidbridge.errors import DataError, JudgeLost
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.events import EventRecall
from vidbridge.rewards.judged import Grade
from vidbridge.rewards.rules import Choice, Format
from vidbridge.rewards.scoring import reward_metrics, score_groups, self_test
from vidbridge.rewards.style import Wording
from vidbridge.shapes_world.exact_judge import ExactJudge
from vidbridge.types import EncodedPrompt, Group, Prompt

QA = sample("qa", "B", options=("moves left", "grows"))
DARK = sample("dark_event_infer", "the square moves left")


class Unreachable:
    def ask(self, requests):
        raise JudgeUnavailable("no route to the judge")


class Rows:
    """As much of a task as the self-test looks at."""

    def __init__(self, *rows, says=lambda row: f"<think>x</think><answer>{row.answer}</answer>"):
        self.rows, self.gold = rows, says

    def __len__(self):
        return len(self.rows)

    def sample(self, index):
        return self.rows[index]


def reward_with(judge, **gates):
    return GatedSum(
        gates=gates,
        terms={"choice": Choice(), "grade": Grade(judge)},
        weights={"qa": {"choice": 1.0}, "dark_event_infer": {"grade": 0.5}},
    )


def group_of(row, completions):
    nothing = torch.zeros(0)
    encoded = EncodedPrompt(
        input_ids=nothing, position_ids=nothing, rope_delta=0, pixel_values=nothing, grid_thw=nothing
    )
    return Group(sample=row, prompt=Prompt(messages=(), clips=()), encoded=encoded, completions=completions)


def test_groups_are_scored_each_by_its_own_sample():
    """The question of the first must not be used for all: here the same answers earn differently."""
    other = replace(QA, uid="qa/test/1", answer="A")
    answers = said("A", "B")
    reward = reward_with(ExactJudge(), format=Format())
    groups = [group_of(row, answers) for row in (QA, other, DARK)]
    first, second, third = score_groups(groups, reward)
    assert [part.total for part in first.rewards] == [0, 1]
    assert [part.total for part in second.rewards] == [1, 0]
    assert [part.total for part in third.rewards] == [0, 0]
    assert first.is_scored and first.completions == answers


def test_a_group_without_a_judge_is_kept_unscored_and_the_others_are_scored():
    groups = [group_of(DARK, said("it grows")), group_of(QA, said("B"))]
    unscored, scored = score_groups(groups, reward_with(Unreachable()))
    assert not unscored.is_scored and len(unscored.rewards) == 1 and math.isnan(unscored.rewards[0].total)
    assert scored.is_scored and scored.rewards[0].total == 1
    assert reward_metrics([unscored, scored]) == {
        "reward/qa/total": 1,
        "reward/qa/choice": 1,
        "reward/qa/unscored": 0,
        "reward/dark_event_infer/unscored": 1,
        "rollout/judge_failed": 1,
    }


class Patchy(ExactJudge):
    """Has no reply about what spins."""

    def ask(self, requests):
        return [
            JudgeUnavailable("busy") if "spins" in request.text else reply
            for request, reply in zip(requests, super().ask(requests))
        ]


def test_a_completion_without_a_reply_is_unscored_alone():
    completions = (*said("it moves left", "it spins", "it moves up"), *raw("it spins", "<answer>it spins</answer>"))
    (group,) = score_groups([group_of(DARK, completions)], reward_with(Patchy(), format=Format()))
    # the fourth has no answer, the fifth is kept out by the gate, whatever the judge would have said of it
    assert group.scored == (True, False, True, True, True) and group.is_scored
    assert [each.total for each in group.rewards if each.scored] == [1.0, 0.5, 0, 0]
    metrics = reward_metrics([group])
    assert metrics["reward/dark_event_infer/total"] == pytest.approx((1.0 + 0.5) / 4)
    assert metrics["reward/dark_event_infer/grade"] == pytest.approx((2 + 1 + 0) / 3)
    assert metrics["reward/dark_event_infer/unscored"] == metrics["rollout/judge_failed"] == 1


def test_a_term_that_does_not_pay_leaves_nothing_unscored():
    reward = reward_with(Patchy())
    reward = replace(reward, weights={"dark_event_infer": {"grade": 0.0, "choice": 1.0}})
    (breakdown,) = reward.score(replace(DARK, options=("spins", "grows")), said("it spins"))
    assert breakdown.scored and math.isnan(breakdown.terms["grade"])


class Meeting(ExactJudge):
    """Replies when three have come; one after another would never get together."""

    waits = True

    def __init__(self):
        self.barrier = threading.Barrier(3, timeout=10)

    def ask(self, requests):
        self.barrier.wait()
        return super().ask(requests)


def test_groups_are_scored_side_by_side_where_the_judge_is_one_to_wait_for():
    judge = Meeting()
    answers = ("it moves left", "it moves up", "it grows")
    groups = [group_of(replace(DARK, uid=f"dark_event_infer/test/{n}"), said(text)) for n, text in enumerate(answers)]
    scored = score_groups(groups, replace(reward_with(judge), judge=judge))
    assert [group.rewards[0].total for group in scored] == [1.0, 0.5, 0]


def test_the_self_test_asks_side_by_side_too():
    judge = Meeting()
    self_test({"dark_event_infer": Rows(DARK, DARK, DARK)}, replace(reward_with(judge), judge=judge))


def test_what_fails_while_a_group_is_scored_is_raised_when_it_is_asked_for():
    class Lost(ExactJudge):
        waits = True

        def ask(self, requests):
            raise JudgeLost("nobody at http://here")

    judge = Lost()
    with pytest.raises(JudgeLost, match="nobody at"):
        score_groups([group_of(DARK, said("it grows"))], replace(reward_with(judge), judge=judge))


def test_metrics_are_means_over_completions():
    groups = score_groups(
        [
            group_of(QA, (*said("B", "A"), *raw("<answer>B</answer>"))),
            group_of(QA, said("B")),
            group_of(DARK, said("it moves left", "it moves up")),
        ],
        reward_with(ExactJudge(), format=Format()),
    )
    assert reward_metrics(groups) == pytest.approx(
        {
            "reward/qa/total": 2 / 4,
            "reward/qa/choice": 3 / 4,  # one right answer was held back by the gate
            "reward/qa/format": 3 / 4,
            "reward/dark_event_infer/total": (0.5 * 2 + 0.5 * 1) / 2,
            "reward/dark_event_infer/grade": 3 / 2,
            "reward/dark_event_infer/format": 1,
            "reward/qa/unscored": 0,
            "reward/dark_event_infer/unscored": 0,
            "rollout/judge_failed": 0,
        }
    )


def test_self_test_is_silent_when_gold_earns_everything():
    self_test({"qa": Rows(QA, QA), "dark_event_infer": Rows(DARK)}, reward_with(ExactJudge(), format=Format()))


def test_self_test_lists_every_row_that_fails():
    wrong = replace(QA, uid="qa/test/7", answer="C")  # there are two options
    bare = Rows(DARK, says=lambda row: row.answer)
    with pytest.raises(DataError, match="qa/test/7: gold answer earns 0 of 1") as error:
        self_test({"qa": Rows(QA, wrong), "dark_event_infer": bare}, reward_with(ExactJudge(), format=Format()))
    assert "dark_event_infer/test/0: gold answer earns 0 of 1" in str(error.value)
    assert "qa/test/0" not in str(error.value)


def test_self_test_does_not_ask_for_the_maximum_where_a_weight_is_negative():
    class Wording:
        maximum = 0.4

        def __call__(self, sample, completions):
            return [0.4 if done.text else 0.0 for done in completions]

    reward = reward_with(ExactJudge())
    reward = GatedSum(
        gates={},
        terms={**reward.terms, "wording": Wording()},
        weights={"qa": {"choice": 1.0, "wording": -0.5}},  # gold earns 1 - 0.5 * 0.4
    )
    self_test({"qa": Rows(QA)}, reward)


def test_self_test_finds_a_reward_that_pays_for_nothing():
    class Generous:
        maximum = 1.0

        def __call__(self, sample, completions):
            return [1.0 for _ in completions]

    reward = GatedSum(gates={}, terms={"generous": Generous()}, weights={"qa": {"generous": 1.0}})
    with pytest.raises(DataError, match="qa/test/0: an empty completion earns 1"):
        self_test({"qa": Rows(QA)}, reward)


def test_self_test_finds_a_judge_that_likes_everything():
    class Pleased(ExactJudge):
        def ask(self, requests):
            return ['{"score": 2}'] * len(requests)

    with pytest.raises(DataError, match="the judge gives grade 2 for 'I cannot tell"):
        self_test({"dark_event_infer": Rows(DARK)}, reward_with(Pleased()))


def test_self_test_allows_a_model_some_slack_and_no_more():
    class Strict(ExactJudge):
        slack = 0.5

        def ask(self, requests):
            return ['{"score": 1}' if "left" in request.text else '{"score": 0}' for request in requests]

    judge = Strict()
    self_test({"dark_event_infer": Rows(DARK)}, replace(reward_with(judge), judge=judge))  # 0.5 of 1
    judge.slack = 0.4
    with pytest.raises(DataError, match="gold answer earns 0.5 of 1"):
        self_test({"dark_event_infer": Rows(DARK)}, replace(reward_with(judge), judge=judge))


def test_self_test_does_not_ask_the_reference_for_style():
    told = sample("caption", "The square moves left.")  # without a connective
    reward = GatedSum(
        gates={},
        terms={"event_recall": EventRecall(ExactJudge()), "wording": Wording()},
        weights={"caption": {"event_recall": 1.0, "wording": 1.0}},
    )
    self_test({"caption": Rows(told)}, reward)


def test_self_test_says_why_there_is_no_reply():
    judge = Patchy()
    judge.trouble = "some-model at http://here: status 503"
    spins = replace(DARK, answer="the square spins")
    with pytest.raises(DataError, match="dark_event_infer/test/0: could not be judged: some-model at http://here"):
        self_test({"dark_event_infer": Rows(spins)}, replace(reward_with(judge), judge=judge))


def test_self_test_needs_the_judge():
    with pytest.raises(DataError, match="dark_event_infer/test/0: no route to the judge"):
        self_test({"dark_event_infer": Rows(DARK)}, reward_with(Unreachable()))


def test_self_test_names_references_that_cannot_be_judged():
    walks = replace(DARK, uid="dark_event_infer/test/3", answer="a man walks")
    told = sample("caption", "A man walks.")
    judge = ExactJudge()
    reward = GatedSum(
        gates={},
        terms={"grade": Grade(judge), "event_recall": EventRecall(judge)},
        weights={"dark_event_infer": {"grade": 0.5}, "caption": {"event_recall": 1.0}},
    )
    with pytest.raises(DataError) as error:
        self_test({"dark_event_infer": Rows(DARK, walks), "caption": Rows(told)}, reward)
    _, first, second = str(error.value).splitlines()
    assert first.startswith("  dark_event_infer/test/3: the exact judge grades against one event")
    assert second.startswith("  caption/test/0: the judge reads no event out of the reference 'A man walks.'")


def test_a_reference_that_cannot_be_judged_is_named_in_mid_run_too():
    walks = replace(DARK, uid="dark_event_infer/test/3", answer="a man walks")
    with pytest.raises(DataError, match="dark_event_infer/test/3: the exact judge"):
        score_groups([group_of(walks, said("it grows"))], reward_with(ExactJudge()))
