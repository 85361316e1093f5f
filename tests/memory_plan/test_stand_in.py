"""Released models that are not at hand: their sizes, the length of their prompts, and plan=true without a network."""

import io

import pytest
from rich.console import Console

from tests.composing import config_of
from tests.conftest import random_clip, video_prompt
from vidbridge.errors import ConfigError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.memory_plan import plan, stand_in
from vidbridge.memory_plan.model_size import ModelSize

ENGLISH = (
    "A woman in a red coat walks along the river, stops at a bench, and takes a small notebook out of her bag. "
    "She writes for a while, looks up at two children who are playing with a ball, and smiles."
)


@pytest.mark.parametrize(
    ("model", "billions"),
    [("qwen2_5_vl_3b", 3.75), ("qwen2_5_vl_7b", 8.29), ("qwen2_5_vl_32b", 33.45), ("qwen2_5_vl_72b", 73.41)],
)
def test_the_numbers_give_as_many_weights_as_are_published(model, billions):
    spec = config_of(f"model={model}").model
    assert ModelSize.of(stand_in.config_of(spec.shape), spec).weights / 1e9 == pytest.approx(billions, abs=0.01)


def test_video_tokens_are_exact_and_text_tokens_by_characters():
    """16 frames of 280 x 504 pixels are 8 grids of 10 x 18 merged patches of 28 pixels; 195 characters are 49 fours."""
    spec = config_of("model=qwen2_5_vl_7b").model
    budget = FrameBudget(fps=None, max_frames=16, min_pixels=100352, max_pixels=153664)
    processor = stand_in.processor_of(spec, budget)
    short, long = (
        processor.encode(video_prompt(random_clip(16, 280, 504), text=text)) for text in ("", ENGLISH)
    )
    is_video = short.input_ids == processor.config.video_token_id
    assert int(is_video.sum()) == 8 * 10 * 18
    assert len(ENGLISH) == 195 and len(long.input_ids) - len(short.input_ids) == pytest.approx(195 / 4, abs=1)


def planned(monkeypatch, tmp_path, *overrides):
    """What plan=true prints where neither a hub nor its cache can be reached."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    console = Console(width=200, file=io.StringIO())
    rows = [f"paths.cache='{tmp_path / 'cache'}'", "data.num_rows={train: 2, val: 2, test: 2}"]
    plan.show(config_of(*overrides, *rows), console)
    return console.file.getvalue()


def columns(text):
    """-> the last table: {what is held: {stage: GB}}"""
    rows = [[each.strip() for each in line[1:-1].replace("┃", "│").split("│")] for line in text.splitlines() if line]
    (stages,) = (row[1:] for row in rows if row[0] == "held")
    return {row[0]: dict(zip(stages, row[1:], strict=True)) for row in rows if len(row) == len(stages) + 1}


def test_a_released_model_is_planned_without_a_network(monkeypatch, tmp_path):
    """A rank of 8 holds an eighth of 8.29 G weights in 16 bits, and all of them to sample with."""
    text = planned(monkeypatch, tmp_path, "experiment=vidbridge_7b", "nproc=8", "model.device=cuda")
    assert "Qwen/Qwen2.5-VL-7B-Instruct is not here: planned by the numbers of model.shape" in text
    held = columns(text)
    assert held["weights"]["rollout"] == "2.07" and held["replica"]["rollout"] == "16.58"  # 8.292 * 2 / 8; 8.292 * 2


def test_a_72b_model_on_eight_gpus_with_an_eighth_of_an_engine_on_each(monkeypatch, tmp_path):
    """73.41 G weights: 2 bytes each in the engine, divided by 8; 2, 12 and 8 bytes each on the CPU, divided by 8."""
    model = ["model=qwen2_5_vl_72b", "model.device=cuda", "nproc=8", "engine=zero3_offload"]
    engine = ["rollout=vllm", "rollout.tensor_parallel=8", "rollout.cache_gb=4"]
    held = columns(planned(monkeypatch, tmp_path, *model, *engine))
    stages = ("evaluation", "rollout", "learner", "update")
    assert "replica" not in held and "reference" not in held
    assert [held["rollout engine"][stage] for stage in stages] == ["22.35"] * 4  # 73.41 * 2 / 8 + 4
    # the embedding, 152064 x 8192 of 2 bytes, gathered and copied; a billion numbers at a time in the learner
    assert [held["gathered weights"][stage] for stage in stages] == ["4.98", "4.98", "2.00", "-"]
    assert [held[part]["update"] for part in ("weights", "optimizer", "gradients")] == ["18.35", "110.12", "73.41"]
    assert held["in all"]["rollout"] == "27.34"  # while it samples nothing else is on a GPU
    assert held["whole weights"]["loading"] == "146.82"  # read by every rank, into the memory of the CPU
    sleeping = columns(planned(monkeypatch, tmp_path, *model, *engine, "rollout.sleep=true"))
    # the last row of this name is that of the CPU: 73.41 * 2 / 8 while the learner works
    assert [sleeping["rollout engine"][stage] for stage in stages] == ["-", "-", "18.35", "18.35"]
    with pytest.raises(ConfigError, match="rollout.tensor_parallel=8 does not divide the 4 ranks of a machine"):
        planned(monkeypatch, tmp_path, *model, *engine, "nproc=4")


def test_the_numbers_of_a_folder_win_and_are_told(monkeypatch, tmp_path, random_qwen_folder):
    small = "frames={fps: 1.0, max_frames: 8, min_pixels: 256, max_pixels: 256}"
    model = ("model=qwen2_5_vl_7b", f"model.path='{random_qwen_folder}'", "model.device=cpu")
    text = planned(monkeypatch, tmp_path, *model, small)
    assert "is not model=qwen2_5_vl_7b" in text
    assert "model.shape.text.hidden_size is 3584, config.json says 32" in text
    assert "model.shape.vision.window_size is 112, config.json says 16" in text
