"""The embedded model from nothing: its folder is a Qwen2.5-VL folder, and a few steps teach it something."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tests.composing import tiny_shape
from tests.conftest import SHAPES_FRAMES
from vidbridge.config.schema import OptimConfig, SftStage
from vidbridge.errors import DataError
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.sft_step import SftStep
from vidbridge.shapes_world.create_model import TAGS, create_folder, texts_of
from vidbridge.text.prompts import texts_in


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "qa")}


@pytest.fixture(scope="module")
def folder(untrained_folder):
    return untrained_folder


def test_the_untrained_folder_is_loaded_as_any_other(folder, tasks):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    assert 1e6 < sum(weight.numel() for weight in model.parameters()) < 3e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for task in tasks.values():
        for sample in map(task.sample, range(len(task))):
            for text in (*texts_in(task.messages(sample)), task.gold(sample)):
                ids = tokenizer(text).input_ids
                assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
    assert all(len(tokenizer(tag).input_ids) == 1 for tag in TAGS)
    assert tokenizer.decode(tokenizer("<think>").input_ids, skip_special_tokens=True) == "<think>", "tags are text"


def test_the_same_seed_makes_the_same_weights(folder, shapes_tasks, tmp_path):
    create_folder(tmp_path, texts_of(shapes_tasks), tiny_shape(), seed=0)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    create_folder(tmp_path, texts_of(shapes_tasks), tiny_shape(), seed=1)
    assert (tmp_path / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def make_step(tasks, folder, stages, max_packed_tokens=512):
    module = load_model(str(folder), device="cpu")
    processor = Processor.from_folder(folder, SHAPES_FRAMES)
    engine = LocalEngine(module, OptimConfig(lr=2e-3), total_updates=100)
    policy = Policy(module, processor, engine, max_packed_tokens=max_packed_tokens)
    return SftStep(stages, tasks=tasks, processor=processor, policy=policy, prompts_per_step=8, seed=0)


def test_the_loss_falls_and_starts_at_the_size_of_the_vocabulary(tasks, folder):
    step = make_step(tasks, folder, [SftStage(steps=30, shares={"caption": 1})])
    losses = [step(number).metrics["sft/loss"] for number in range(12)]
    vocabulary = len(step.processor.tokenizer)
    # an untrained model is no better than guessing: at least ln(200), about 5.3 nats a token
    assert losses[0] > 0.9 * torch.tensor(float(vocabulary)).log()
    assert losses[-1] < 0.6 * losses[0]


def test_micro_batches_give_the_same_loss(tasks, folder):
    stages = [SftStage(steps=2, shares={"caption": 1, "qa": 1})]
    losses = [make_step(tasks, folder, stages, size)(0).metrics["sft/loss"] for size in (1, 512, 4096)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_a_row_whose_gold_answer_cannot_be_given_is_named(tasks, folder):
    row = replace(tasks["caption"].rows[0], solution="<answer>The square grows <|im_end|></answer>")
    bad = {"caption": replace(tasks["caption"], rows=[row])}
    step = make_step(bad, folder, [SftStage(steps=1, shares={"caption": 1})])
    with pytest.raises(DataError, match="caption/train/0: a completion may not hold"):
        step(0)


def test_stages_follow_one_another(tasks, folder):
    stages = [
        SftStage(steps=2, shares={"caption": 1}),
        SftStage(steps=2, shares={"qa": 1}, spoil={"guessed": 1.0}),
    ]
    step = make_step(tasks, folder, stages)
    kinds = [{group.sample.task for group in step.groups(number, step.loaded(number))} for number in range(5)]
    assert kinds == [{"caption"}, {"caption"}, {"qa"}, {"qa"}, {"qa"}], "the last stage goes on"
    for group in step.groups(3, step.loaded(3)):
        assert f"<answer>{group.sample.answer}</answer>" not in group.completions[0].text


def test_a_blind_task_has_no_video_and_is_given_its_notes(tasks, folder):
    step = make_step(tasks, folder, [SftStage(steps=2, shares={"caption": 1, "qa": 1}, blind=["qa"])])
    groups = step.groups(0, step.loaded(0))
    weights = step._token_weights(groups)
    # every row has the same share, 1 / 8: in halves where the video is seen, all of it on what follows the notes else
    assert weights.sum(dim=1).tolist() == pytest.approx([1 / 8] * 8)
    assert {group.sample.task for group in groups} == {"qa", "caption"}
    for group, row in zip(groups, weights):
        end = step._notes_end(group)
        assert step.processor.decode(group.completions[0].token_ids[:end]).endswith(group.sample.meta["notes"])
        blind = group.sample.task == "qa"
        assert bool(group.prompt.clips) != blind and len(group.encoded.grid_thw) == (0 if blind else 1)
        assert row[:end].sum().item() == pytest.approx(0.0 if blind else 1 / 16)
