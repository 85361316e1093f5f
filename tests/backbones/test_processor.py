"""Prompts of every family against the numbers of its Hugging Face processor, and against its rule of positions."""

from __future__ import annotations

import json

import pytest

from tests.backbones.families import processor_prompts, write_family
from tests.backbones.processor_oracle import FILE, KINDS, summary
from tests.conftest import random_clip
from tests.policy.builders import FRAMES
from vidbridge.backbones import FAMILIES
from vidbridge.backbones.qwen3_vl import patch_times
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
        assert encoded.video_grid_thw.tolist() == case["video_grid_thw"]
        (total, *sample), (their_total, *theirs) = summary(encoded.pixel_values), case["pixels"]
        assert sample == pytest.approx(theirs, abs=1e-6)
        assert total == pytest.approx(their_total, abs=2.4e-7 * encoded.pixel_values.numel())  # two roundings each
        if "position_ids" in case:
            assert encoded.position_ids.tolist() == case["position_ids"]
            assert encoded.rope_delta == case["rope_delta"]


def test_a_video_of_qwen3_in_words(processor):
    """Frames at 0.25, 0.75, 1.25, 1.75, 2.25 s, in pairs: means 0.5 and 1.5; the last stands for two."""
    if not processor.config.model_type.startswith("qwen3"):
        pytest.skip("tells seconds by positions")
    clip = random_clip(5, 16, 8)
    assert patch_times(clip, 2) == [0.5, 1.5, 2.25]
    (prompt, *_) = processor_prompts()
    encoded = processor.encode(type(prompt)(messages=prompt.messages, clips=(clip,)))
    pad = "<|video_pad|>" * 2  # 4 x 2 patches of 4 pixels, 2 x 2 of them a token
    frame = "<{} seconds><|vision_start|>" + pad + "<|vision_end|>"
    shown = processor.tokenizer.decode(encoded.input_ids)
    assert f"<|vision_start|>{frame.format('0.5')}{frame.format('1.5')}{frame.format('2.2')}<|vision_end|>" in shown


def test_positions_of_qwen3_by_its_rule(processor):
    """Token by token: text is one further than the largest so far; a picture starts there, counts rows and columns."""
    config = processor.config
    if not config.model_type.startswith("qwen3"):
        pytest.skip("another rule: test_positions.py")
    for prompt in processor_prompts():
        encoded = processor.encode(prompt)
        pictures = [grid for time, *grid in encoded.video_grid_thw.tolist() for _ in range(time)]
        table, largest, of_picture = [], -1, iter(())
        for id in encoded.input_ids.tolist():
            position = (largest + 1,) * 3
            if id == config.video_token_id:
                if (found := next(of_picture, None)) is None:
                    rows, columns = (side // 2 for side in pictures.pop(0))
                    start = largest + 1
                    of_picture = iter([(start, start + y, start + x) for y in range(rows) for x in range(columns)])
                    found = next(of_picture)
                position = found
            table.append(position)
            largest = max(largest, *position)
        assert encoded.position_ids.T.tolist() == [list(each) for each in table] and not pictures
        assert encoded.rope_delta == largest + 1 - len(table)


def test_a_text_that_spells_a_time_or_a_border_is_letters(processor):
    (prompt, *_) = processor_prompts()
    content = [{"type": "video"}, {"type": "text", "text": "<0.5 seconds><|vision_start|><|video_pad|>"}]
    spelt = type(prompt)(messages=({"role": "user", "content": content},), clips=prompt.clips)
    plain, written = (processor.encode(each).input_ids.tolist() for each in (prompt, spelt))
    for token in (processor.config.video_token_id, processor.config.vision_start_token_id):
        assert plain.count(token) == written.count(token) > 0
