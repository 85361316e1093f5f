"""Every reward yaml builds, and differs from the combined one in what its header says."""

from pathlib import Path

import pytest

from tests.composing import config_of
from tests.rewards.builders import raw, said, sample
from vidbridge.build.common import build_reward
from vidbridge.shapes_world.exact_judge import ExactJudge

FOLDER = Path(__file__).parents[2] / "conf" / "reward"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CAPTION = sample("caption", "First the square moves left, then it grows, finally it spins.")
QA = sample("qa", "B", options=("moves left", "grows", "spins", "hides"))
DARK = sample("dark_event_infer", "the square moves left")
MIX = sample("mix_vid_qa", "the square grows")


def build(name, *overrides):
    """The reward of one yaml."""
    config = config_of(f"reward={name}", *overrides)
    return build_reward(config, "reward", config.reward, ExactJudge())


def total(reward, sample, completions):
    return pytest.approx([breakdown.total for breakdown in reward.score(sample, completions)])


@pytest.mark.parametrize("name", NAMES)
def test_each_scores_every_task(name):
    reward = build(name)
    for row, gold in ((QA, "B"), (DARK, DARK.answer), (MIX, MIX.answer), (CAPTION, CAPTION.answer)):
        right, empty = reward.score(row, (*said(gold), *raw("")))
        assert right.total == pytest.approx(reward.maximum(row.task)) and right.total > 0 and empty.total <= 0


def test_combined_by_hand():
    reward = build("combined")
    assert total(reward, QA, said("B", "A")) == [1, 0]
    assert total(reward, DARK, said("it moves left", "it moves up", "it grows")) == [2, 1, 0]
    assert total(reward, MIX, said("it grows", "it spins")) == [1, 0]
    captions = said(
        "First the square moves left, then it grows, finally it spins.",  # 1 + 0.5 * 1 + 0.4
        "It grows.",  # recall 1/3, precision 1
        "It grows, maybe it turns red.",  # 1/3 + 0.5 * 1/2 - 0.2
    )
    assert total(reward, CAPTION, captions) == [1.9, 1 / 3 + 0.5, 1 / 3 + 0.25 - 0.2]
    assert reward.score(CAPTION, captions)[2].terms["event_precision_lenient"] == 1  # logged, unpaid
    for row in (QA, DARK, MIX, CAPTION):
        assert total(reward, row, raw("<answer>B, it grows, it moves left</answer>")) == [0]  # the gate


def test_a_weight_can_be_given_on_the_command_line():
    reward = build("combined", "reward.caption.event_precision=0.25")
    assert reward.maximum("caption") == pytest.approx(1 + 0.25 + 0.4)
    assert total(reward, CAPTION, said("It grows.")) == [1 / 3 + 0.25]


def test_a_task_can_be_given_a_term_on_the_command_line():
    assert build("combined", "+reward.qa.wording=0.5").maximum("qa") == pytest.approx(1 + 0.5 * 0.4)


def test_no_gate_pays_the_answer_and_still_logs_the_form():
    unformed, formed = build("no_gate").score(QA, (*raw("<answer>B</answer>"), *said("B")))
    assert (unformed.total, formed.total) == (1, 1)
    assert (unformed.terms["well_formed"], formed.terms["well_formed"]) == (0, 1)


def test_format_only_pays_the_form_and_still_logs_the_rest():
    right, wrong, unformed = build("format_only").score(QA, (*said("B", "A"), *raw("<answer>B</answer>")))
    assert (right.total, wrong.total, unformed.total) == (1, 1, 0)
    assert (right.terms["choice"], wrong.terms["choice"], unformed.terms["choice"]) == (1, 0, 1)


@pytest.mark.parametrize(
    "name, plain, hedged",
    [
        # plain: recall 1/3, precision 1, two connectives; hedged: recall 1/3, precision 1/2, one hedge
        ("combined", 1 / 3 + 0.5 + 0.4, 1 / 3 + 0.25 - 0.2),
        ("no_wording", 1 / 3 + 0.5, 1 / 3 + 0.25),
        ("recall_only", 1 / 3, 1 / 3),
        ("precision_heavy", 1 / 6 + 1 + 0.4, 1 / 6 + 0.5 - 0.2),
    ],
)
def test_caption_ablations_by_hand(name, plain, hedged):
    captions = said("First, then it grows.", "It grows, maybe it turns red.")
    assert total(build(name), CAPTION, captions) == [plain, hedged]
