from dataclasses import replace

import pytest
import torch

from tests.rewards.builders import raw, said, sample
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.judges.exact import ExactJudge
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.choice import Choice
from vidbridge.rewards.events import EventRecall
from vidbridge.rewards.format import Format
from vidbridge.rewards.judged import Grade
from vidbridge.scoring import reward_metrics, score_groups, self_test
from vidbridge.tasks.base import DataError
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
        input_ids=nothing, position_ids=nothing, rope_delta=0, pixel_values=nothing, video_grid_thw=nothing
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
    assert first.trainable and first.completions == answers


def test_a_group_without_a_judge_is_kept_unscored_and_the_others_are_scored():
    groups = [group_of(DARK, said("it grows")), group_of(QA, said("B"))]
    unscored, scored = score_groups(groups, reward_with(Unreachable()))
    assert (unscored.trainable, unscored.rewards) == (False, ())
    assert (scored.trainable, scored.rewards[0].total) == (True, 1)
    assert reward_metrics([unscored, scored]) == {
        "reward/qa/total": 1,
        "reward/qa/choice": 1,
        "rollout/judge_failed": 1,
    }


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
