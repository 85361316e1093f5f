"""Prompts of every family against the numbers of its Hugging Face processor, and against its rule of positions."""

from __future__ import annotations

import json

import pytest
import torch

from tests.backbones.families import processor_prompts, write_family
from tests.backbones.processor_oracle import FILE, GRIDS, KINDS, PIXELS, summary
from tests.conftest import random_clip, video_prompt
from tests.policy.builders import FRAMES, SAMPLE
from vidbridge.backbones import FAMILIES
from vidbridge.backbones.qwen3_vl import patch_times
from vidbridge.check_model import inputs, positions
from vidbridge.check_model.base import Item
from vidbridge.check_model.positions import TOLD_IN_WORDS
from vidbridge.policy.plain import clips_of
from vidbridge.policy.processor import Processor


@pytest.fixture(scope="module", params=FAMILIES)
def processor(request, tmp_path_factory):
    return Processor.from_folder(write_family(request.param, tmp_path_factory.mktemp(request.param)), FRAMES)


def test_every_family_has_numbers():
    assert set(KINDS) == set(FAMILIES)


def test_prompts_are_those_of_the_hugging_face_processor(processor):
    cases = json.loads(FILE.read_text())[processor.config.model_type]
    for prompt, case in zip(processor_prompts(), cases, strict=True):
        encoded = processor.encode(prompt)
        assert encoded.input_ids.tolist() == case["input_ids"]
        clips = clips_of(processor.config, [encoded], torch.device("cpu"))
        assert set(clips) == {name for name in (*GRIDS, *PIXELS) if name in case}
        assert {name: clips[name].tolist() for name in GRIDS if name in case} == {
            name: case[name] for name in GRIDS if name in case
        }
        for name in (name for name in PIXELS if name in case):
            (total, *sample), (their_total, *theirs) = summary(clips[name]), case[name]
            assert sample == pytest.approx(theirs, abs=1e-6)
            assert total == pytest.approx(their_total, abs=2.4e-7 * clips[name].numel())  # two roundings each
        if "position_ids" in case:
            assert encoded.position_ids.tolist() == case["position_ids"]
            assert encoded.rope_delta == case["rope_delta"]


@pytest.mark.parametrize("family", TOLD_IN_WORDS)
def test_a_video_of_qwen3_in_words(tmp_path, family):
    """Frames at 0.25, 0.75, 1.25, 1.75, 2.25 s, in pairs: means 0.5 and 1.5; the last stands for two."""
    processor = Processor.from_folder(write_family(family, tmp_path), FRAMES)
    clip = random_clip(5, 16, 8)
    assert patch_times(clip, 2) == [0.5, 1.5, 2.25]
    encoded = processor.encode(video_prompt(clip))
    pad = "<|video_pad|>" * 2  # 4 x 2 patches of 4 pixels, 2 x 2 of them a token
    frame = "<{} seconds><|vision_start|>" + pad + "<|vision_end|>"
    shown = processor.tokenizer.decode(encoded.input_ids)
    assert f"<|vision_start|>{frame.format('0.5')}{frame.format('1.5')}{frame.format('2.2')}<|vision_end|>" in shown


def test_check_model_finds_the_inputs_right_and_says_no_where_one_is_not(processor, monkeypatch):
    """Its second implementation of positions goes token by token; its runs of video tokens come from the grids."""
    items = [Item(sample=SAMPLE, prompt=prompt, gold="A") for prompt in processor_prompts()]
    assert inputs.check_template(processor, items).ok and positions.check_positions(processor, items).ok
    rule = type(processor.backbone).positions

    def shifted(self, *args):
        positions, delta = rule(self, *args)
        positions[:, -1] += 1
        return positions, delta

    monkeypatch.setattr(type(processor.backbone), "positions", shifted)
    assert positions.check_positions(processor, items).ok is False
    ids = type(processor.backbone).video_ids

    def one_less(self, config, *args):
        found = list(ids(self, config, *args))
        found.remove(config.video_token_id)
        return found

    monkeypatch.setattr(type(processor.backbone), "video_ids", one_less)
    assert inputs.check_template(processor, items).ok is False


def test_a_text_that_spells_a_time_or_a_border_is_letters(processor):
    (prompt, *_) = processor_prompts()
    content = [{"type": "video"}, {"type": "text", "text": "<0.5 seconds><|vision_start|><|video_pad|>"}]
    spelt = type(prompt)(messages=({"role": "user", "content": content},), clips=prompt.clips)
    plain, written = (processor.encode(each).input_ids.tolist() for each in (prompt, spelt))
    for token in (processor.config.video_token_id, processor.config.vision_start_token_id):
        assert plain.count(token) == written.count(token) > 0
