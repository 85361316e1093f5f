"""A proxy of our own: what is shown, what is asked, which videos it takes, and that the shelf is all it needs."""

import json

import numpy as np
import pytest

import train
from tests.composing import composed, small_run, templates
from vidbridge.build.common import as_config_errors
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.processor import Processor
from vidbridge.runtime import launch
from vidbridge.shapes_world.exact_judge import verdict
from vidbridge.shapes_world.shapes import Shapes
from vidbridge.shapes_world.world import Scene, Thing, describe
from vidbridge.tasks.rows import TaskRows
from vidbridge.tasks.temporal_order import TemporalOrder

SQUARE = Thing("square", "red", "small", (1, 1))
FRAMES = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)


def drafted(*kinds, seed=0):
    source = describe(Scene(SQUARE, kinds, None, background=230), np.random.default_rng(0))
    return source, TemporalOrder().construct([source], np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(8))
def test_every_event_is_shown_once_and_whole_but_not_in_order(seed):
    source, draft = drafted("moves left", "grows", "turns blue", seed=seed)
    shown = draft.meta["shown"]
    assert sorted(shown) == [0, 1, 2] != shown
    spans = [(event.start_s, event.end_s) for event in source.events]
    assert [(segment.start_s, segment.end_s) for segment in draft.segments] == [spans[index] for index in shown]
    assert draft.answer == "First the square moves left, then the square grows, finally the square turns blue."
    assert draft.rationale.endswith("first moves left, second grows, last turns blue.")


def test_the_judge_pays_for_the_order():
    _, draft = drafted("moves left", "grows", "turns blue")
    assert verdict(draft.answer, "it moves left, then it grows, then it turns blue")
    assert not verdict(draft.answer, "it grows, then it moves left, then it turns blue")
    assert not verdict(draft.answer, "it moves left, then it grows")


@pytest.mark.parametrize("kinds", [("moves left", "spins", "grows"), ("moves left", "moves right", "grows")])
def test_a_video_with_more_than_one_possible_order_is_left_out(kinds):
    # a spin may have been anywhere; back where it was, the square might have grown before it moved at all
    assert drafted(*kinds)[1] is None


def test_it_is_told_in_words_that_the_embedded_model_knows(tmp_path):
    rows = Shapes(root=str(tmp_path), seed=0, num_rows={"train": 8}).rows(TemporalOrder(), "train")
    template = templates("tiny")["temporal_order"]
    task = TaskRows(task=TemporalOrder(), rows=rows, frames=FRAMES, template=template)
    processor = Processor.from_folder(str(launch.PACKAGE / "shapes_world/assets/tiny_qwen2_5_vl"), FRAMES, 1024)
    unknown = processor.tokenizer.unk_token_id
    for sample in map(task.sample, range(8)):
        assert unknown not in processor.encode(task.prompt(sample)).input_ids
        assert unknown not in processor.encode_completion(task.gold(sample))


def test_training_on_it_takes_one_override_for_the_task_and_one_for_its_share(random_qwen_folder, tmp_path):
    chosen = ["+task=temporal_order", "task_mix=qa", "+task_mix.shares.temporal_order=100000"]
    cfg = composed(*small_run(random_qwen_folder, tmp_path / "cache"), *chosen)
    (tmp_path / "run").mkdir()
    with as_config_errors():
        train.train(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path / "run")
    assert "reward/temporal_order/verdict" in (tmp_path / "run" / "metrics.jsonl").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["greedy"]["tasks"]["temporal_order"]["max"] == 1.0
