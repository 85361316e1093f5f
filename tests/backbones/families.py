"""Folders of small random models of each family, in the family's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen3_5Tokenizer

from tests.conftest import CHAT_TEMPLATE, SPECIAL, random_clip, random_image, small_tokenizer, video_prompt
from vidbridge.backbones import backbone_of
from vidbridge.types import Prompt

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # far from uniform, so that a wrong mask or position shows
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}
QWEN3_TEXT = {  # heads of 16, together wider than the layer, as in 4B
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True
    },
}  # fmt: skip
QWEN3_VISION = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 3]}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the text model, of the tower
    "qwen2_5_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]}},
        {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2},
    ),
    "qwen3_vl": (QWEN3_TEXT, QWEN3_VISION),
    "qwen3_5": (  # three recurrent layers and one that attends; two value heads for each of keys; half a head turns
        {
            "head_dim": 16,
            "initializer_range": 0.05,  # further out, 32 bits are lost on the way through recurrent layers: float64.py
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                "partial_rotary_factor": 0.5,
            },
        },
        {"num_position_embeddings": 64},
    ),
    "qwen3_vl_moe": (
        {**QWEN3_TEXT, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        QWEN3_VISION,
    ),
}


def write_family(model_type: str, folder: Path, *, text: Any = (), vision: Any = ()) -> Path:
    """Write a model of a few thousand random weights; norms, biases and gates are away from their neutral start."""
    tokenizer = tokenizer_of(model_type)
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    tokens = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    of_text, of_vision = SETTINGS[model_type]
    config = AutoConfig.for_model(
        model_type,
        text_config={**TEXT, **of_text, **tokens, "vocab_size": len(tokenizer) + 5, **dict(text)},
        vision_config={**VISION, **of_vision, **dict(vision)},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = backbone_of(model_type).model_class(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
    for name, id in tokens.items():
        setattr(model.generation_config, name, id)
    model.save_pretrained(folder)
    numbers = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "min_pixels": 64,
        "max_pixels": 4096,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    return folder


def tokenizer_of(model_type: str) -> PreTrainedTokenizerFast:
    """Return a word for each of conftest.py; of Qwen3.5 bytes, since AutoTokenizer knows only BPE for it."""
    if model_type != "qwen3_5":
        tokenizer = small_tokenizer()
        tokenizer.add_tokens(["<", ">", "seconds", *"0123456789"])
        return tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen3_5Tokenizer(
        vocab={token: id for id, token in enumerate([*SPECIAL, *letters])},
        eos_token="<|im_end|>",
        extra_special_tokens=SPECIAL,
        chat_template=CHAT_TEMPLATE,
    )


def processor_prompts() -> list[Prompt]:
    """An odd frame count, two videos of other sizes and rates, a rate of 3, an image, two, an image before a video."""
    return [
        video_prompt(random_clip(4, 16, 16, seed=1), text="what is next?"),
        video_prompt(random_clip(5, 24, 16, seed=2), random_clip(2, 16, 32, fps=1.0, seed=3), text="it is red?"),
        video_prompt(random_clip(3, 16, 24, fps=3.0, seed=4)),
        video_prompt(random_image(16, 24, seed=5), text="what is red?"),
        video_prompt(random_image(24, 8, seed=6), random_image(8, 16, seed=7)),
        video_prompt(random_image(16, 24, seed=5), random_clip(5, 24, 16, seed=2), text="it is red?"),
    ]
