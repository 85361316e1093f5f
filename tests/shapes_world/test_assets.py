"""The embedded base models: small enough to ship, and at home in the embedded world."""

from pathlib import Path

import pytest

import vidbridge
from tests.composing import config_of, templates
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.memory_plan.stand_in import differences
from vidbridge.policy.loading import load_model
from vidbridge.policy.model_folder import read_config
from vidbridge.policy.processor import Processor
from vidbridge.shapes_world.shapes import Shapes
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows

ASSETS = Path(vidbridge.__file__).parent / "shapes_world" / "assets"
MODELS = {"tiny": "tiny_qwen2_5_vl", "tiny_qwen3_vl": "tiny_qwen3_vl"}  # by their yaml
embedded = pytest.mark.parametrize("model", MODELS)


def test_every_folder_is_some_models():
    assert {path.name for path in ASSETS.iterdir()} == set(MODELS.values())


@embedded
def test_it_is_a_small_safetensors_folder(model):
    base = ASSETS / MODELS[model]
    names = {path.name for path in base.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".py")) for name in names)
    assert sum(path.stat().st_size for path in base.iterdir()) <= 6_000_000
    assert 1e6 < sum(weight.numel() for weight in load_model(str(base), device="cpu").parameters()) < 3e6


@embedded
def test_its_yaml_has_its_numbers(model):
    config = config_of(f"model={model}").model
    assert config.path == str(ASSETS / MODELS[model])
    assert list(differences(config.shape, read_config(config.path))) == []


@embedded
@pytest.mark.parametrize("task", [QA(), Caption(), DarkEventInfer(), MixVidQA()], ids=lambda task: task.name)
def test_it_knows_every_word_of_the_world(model, task, tmp_path):
    """The times of frames as well, where they stand in words."""
    frames = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)
    processor = Processor.from_folder(ASSETS / MODELS[model], frames)
    tokenizer = processor.tokenizer
    rows = Shapes(root=str(tmp_path), seed=9, num_rows={"test": 25}).rows(task, "test")
    task = TaskRows(task=task, rows=rows, frames=frames, template=templates("tiny")[task.name])
    for sample in map(task.sample, range(len(task))):
        prompt = task.prompt(sample)
        assert tokenizer.unk_token_id not in processor.encode(prompt).input_ids, prompt.messages
        assert tokenizer.unk_token_id not in tokenizer(task.gold(sample)).input_ids, task.gold(sample)
