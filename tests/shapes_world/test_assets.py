"""The embedded base model: small enough to ship, and at home in the embedded world."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import vidbridge
from tests.composing import templates
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.loading import load_model
from vidbridge.shapes_world.shapes import Shapes
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows

BASE = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / "tiny_qwen2_5_vl"


def test_it_is_a_small_safetensors_folder():
    names = {path.name for path in BASE.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".py")) for name in names)
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 6_000_000
    assert 1e6 < sum(weight.numel() for weight in load_model(str(BASE), device="cpu").parameters()) < 3e6


@pytest.mark.parametrize("task", [QA(), Caption(), DarkEventInfer(), MixVidQA()], ids=lambda task: task.name)
def test_it_knows_every_word_of_the_world(task, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    frames = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)
    rows = Shapes(root=str(tmp_path), seed=9, num_rows={"test": 25}).rows(task, "test")
    task = TaskRows(task=task, rows=rows, frames=frames, template=templates("tiny")[task.name])
    for sample in map(task.sample, range(len(task))):
        parts = [part for message in task.prompt(sample).messages for part in message["content"]]
        for text in (*(part["text"] for part in parts if "text" in part), task.gold(sample)):
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
