"""Each task on real rows: what the model is asked, and that the gold answer is worth everything."""

import numpy as np
import pytest

from vidbridge.media.frame_budget import FrameBudget
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.events import EventPrecision, EventRecall
from vidbridge.rewards.judged import Grade, Verdict
from vidbridge.rewards.rules import Choice, Format
from vidbridge.rewards.style import Wording
from vidbridge.shapes_world.exact_judge import ExactJudge
from vidbridge.shapes_world.shapes import Shapes, cut
from vidbridge.shapes_world.world import Scene, Thing, describe, render
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import Completion

FRAMES = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)
SCENE = Scene(Thing("square", "red", "small", (1, 1)), ("moves left", "grows", "hides"), None, background=230)
OTHER = Scene(Thing("cross", "blue", "big", (1, 1)), ("spins", "turns red", "shrinks"), None, background=230)


def combined():
    judge = ExactJudge()
    return GatedSum(
        gates={"format": Format()},
        terms={
            "choice": Choice(),
            "grade": Grade(judge),
            "verdict": Verdict(judge),
            "event_recall": EventRecall(judge),
            "event_precision": EventPrecision(judge),
            "wording": Wording(),
        },
        weights={
            "qa": {"choice": 1.0},
            "dark_event_infer": {"grade": 1.0},
            "mix_vid_qa": {"verdict": 1.0},
            "caption": {"event_recall": 1.0, "event_precision": 0.5, "wording": 1.0},
        },
    )


def source(scene):
    return describe(scene, np.random.default_rng(0))


@pytest.mark.parametrize(("task", "best"), [(QA(), 1.0), (Caption(), 1.9), (DarkEventInfer(), 2.0), (MixVidQA(), 1.0)])
def test_every_gold_answer_earns_the_maximum_and_an_empty_one_nothing(task, best, tmp_path):
    data = Shapes(root=str(tmp_path), seed=2, num_rows={"train": 30})
    task = data.filled(TaskRows(task=task, frames=FRAMES), "train")
    assert len(task) == 30
    reward = combined()
    for sample in map(task.sample, range(30)):
        gold, empty = (Completion(text=text, token_ids=()) for text in (task.gold(sample), ""))
        totals = [breakdown.total for breakdown in reward.score(sample, (gold, empty))]
        assert totals == pytest.approx([best, 0.0]), (sample, task.gold(sample))
    prompt = task.prompt(task.sample(0))
    assert prompt.messages[-1]["content"][0] == {"type": "video"} and len(prompt.clips) == 1


def test_dark_event_infer_hides_an_inner_event_that_leaves_a_trace():
    draft = DarkEventInfer().construct([source(SCENE)], np.random.default_rng(0))
    assert draft.answer == "the square grows" and draft.meta == {"dark": [1.0, 2.0]}
    assert draft.rationale == (
        "small red square, middle centre: first moves left, second dark, last hides. "
        "Before small red square, left centre; after medium red square, left centre."
    )
    frames = cut([render(SCENE)], draft).frames
    assert (frames[8:16] == 0).all() and frames[7].any() and frames[16].any()
    # "hides" in the middle could not be told from before and after
    nothing = Scene(SCENE.actor, ("moves left", "hides", "grows"), None, background=230)
    assert DarkEventInfer().construct([source(nothing)], np.random.default_rng(0)) is None


def test_mix_vid_qa_asks_about_its_first_source_wherever_that_is_shown():
    places = set()
    for seed in range(20):
        draft = MixVidQA().construct([source(SCENE), source(OTHER)], np.random.default_rng(seed))
        assert "square" in draft.problem and draft.rationale.startswith("small red square")
        assert [piece[0] for piece in draft.meta["pieces"]] == [0, 1, 0, 1]
        frames = cut([render(SCENE), render(OTHER)], draft).frames
        assert len(frames) == 48
        places.add(draft.meta["asked"])
        # the first piece shows the source that it says: red or blue pixels in the first frame
        red, blue = (frames[0][..., channel].astype(int) for channel in (0, 2))
        shows_square = bool((red - blue > 100).any())
        assert shows_square == (draft.meta["asked"] == 0)
    assert places == {0, 1}


@pytest.mark.parametrize("piece_s", [1.5, [2.0], [2.0, 1.5], [0, 1], [1, float("inf")], ["a", "b"], [1, 2, 3], None])
def test_mix_vid_qa_refuses_impossible_pieces(piece_s):
    with pytest.raises(ValueError, match="tasks.mix_vid_qa.piece_s must be two numbers"):
        MixVidQA(piece_s=piece_s)


def test_qa_prompt_lists_the_options():
    draft = QA().construct([source(SCENE)], np.random.default_rng(0))
    letter = draft.answer
    assert draft.options["ABCDE".index(letter)] in (*SCENE.kinds, "red")
    # the options are read up to the right one
    read = [f"{each} {option}" for each, option in zip("ABCDE", draft.options) if each <= letter]
    assert draft.rationale.endswith(f". {', '.join(read)}.")
