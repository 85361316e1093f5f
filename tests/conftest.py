"""What several tests share: a checkpoint folder in the format of the 7B model, with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.composing import templates, tiny_shape
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.shapes_world.create_model import create_folder, texts_of
from vidbridge.shapes_world.shapes import Shapes
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import Clip, Prompt

# No time limit for an example: a busy machine is not a bug.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")

SHAPES_FRAMES = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)  # as in model=tiny
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
WORDS = (
    "system user assistant what happens next first then the square cross red green moves left right up down grows "
    "spins hides it is A B C D <think> </think> <answer> </answer> . , ?"
).split()
CHAT_TEMPLATE = """{%- if messages[0].role != 'system' -%}
<|im_start|>system
the square is red<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


@pytest.fixture(scope="session")
def random_qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL with 2 + 2 layers and patches of 4 x 4 pixels; more embedding rows than words, like the real one."""
    folder = tmp_path_factory.mktemp("random_qwen")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer) + 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]},
            "initializer_range": 0.3,  # far from uniform, so that a wrong mask or position shows
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,  # 2 x 2 merged patches: the first layer attends in windows, the second to the frame
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 64,
        "max_pixels": 4096,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def shapes_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskRows]:
    """Three tasks of the embedded world with 12 training rows each, their videos real files."""
    data = Shapes(root=str(tmp_path_factory.mktemp("shapes")), seed=1, num_rows={"train": 12})
    words = templates("tiny")
    return {
        task.name: data.filled(TaskRows(task=task, frames=SHAPES_FRAMES, template=words[task.name]), "train")
        for task in (Caption(), MixVidQA(), QA())
    }


@pytest.fixture(scope="session")
def untrained_folder(shapes_tasks: dict[str, TaskRows], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model before any training, with the words of those rows."""
    folder = tmp_path_factory.mktemp("untrained")
    create_folder(folder, texts_of(shapes_tasks), tiny_shape(), seed=0)
    return folder


def small_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, "<unk>", *WORDS, "\n", " "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?\w+>|\w+|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def random_clip(num_frames: int, height: int, width: int, *, fps: float = 2.0, seed: int = 0) -> Clip:
    """Noise; its frame times are the middles of slices of 1 / fps seconds."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Clip(frames=frames, times_s=(np.arange(num_frames) + 0.5) / fps)


def random_image(height: int, width: int, *, seed: int = 0) -> Clip:
    return replace(random_clip(1, height, width, seed=seed), times_s=np.zeros(1), is_image=True)


def video_prompt(*clips: Clip, text: str = "what happens next?") -> Prompt:
    """One user turn: all clips, images among them, then the text."""
    kinds = ["image" if clip.is_image else "video" for clip in clips]
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
    return Prompt(messages=({"role": "user", "content": content},), clips=clips)
