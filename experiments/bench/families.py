"""The same sizes in every family: the numbers of its config.json, and a tokenizer that it can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3_5Tokenizer

from vidbridge.config.schema import ShapeConfig
from vidbridge.shapes_world.create_model import CHAT_TEMPLATE, SPECIAL_TOKENS, word_tokenizer

PATCH, MERGE, TEMPORAL = 14, 2, 2  # as in Qwen2.5-VL; of other families here too


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers in which one model differs from another."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    mrope_section: tuple[int, int, int]
    tied: bool
    vision_depth: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_heads: int
    full_attention_blocks: tuple[int, ...]  # of the vision tower; the others see windows of 112 x 112 pixels


# 12 M parameters
SMALL = Shape(
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=4096,
    mrope_section=(4, 6, 6),
    tied=True,
    vision_depth=6,
    vision_hidden_size=192,
    vision_intermediate_size=512,
    vision_heads=6,
    full_attention_blocks=(2, 5),
)
# 54 M parameters: enough that a process is mostly model
MEDIUM = Shape(
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=16384,
    mrope_section=(8, 12, 12),
    tied=False,
    vision_depth=6,
    vision_hidden_size=384,
    vision_intermediate_size=1024,
    vision_heads=6,
    full_attention_blocks=(2, 5),
)
# for --quick
TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=512,
    mrope_section=(2, 1, 1),
    tied=True,
    vision_depth=2,
    vision_hidden_size=32,
    vision_intermediate_size=64,
    vision_heads=2,
    full_attention_blocks=(1,),
)


def shape_config(shape: Shape, family: str) -> ShapeConfig:
    """What conf/model/*.yaml says of a released model, for one of the small ones."""
    text, vision = own_numbers(shape, family)
    text |= {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "vocab_size": shape.vocab_size,
    }
    vision |= {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden_size,
        "intermediate_size": shape.vision_intermediate_size,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden_size,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
    }
    return ShapeConfig(model_type=family, text=text, vision=vision, tie_word_embeddings=shape.tied)


def own_numbers(shape: Shape, family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the text model and of the tower that this family has and others have not."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": list(shape.mrope_section),
    }
    if family == "qwen2_5_vl":
        tower = {
            "window_size": 112, "fullatt_block_indexes": list(shape.full_attention_blocks), "tokens_per_second": 2
        }  # fmt: skip
        return {"rope_parameters": rope}, tower
    size = shape.hidden_size // shape.num_attention_heads
    text = {"head_dim": size, "rope_parameters": {**rope, "mrope_interleaved": True}}
    if family == "qwen3_5":  # three recurrent layers to one that attends, which turns half of each head
        text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [size // 8, size // 16, size // 16]}
        return text | {
            "full_attention_interval": min(4, shape.num_hidden_layers),
            "linear_num_key_heads": shape.num_attention_heads // 2,
            "linear_num_value_heads": shape.num_attention_heads,
            "linear_key_head_dim": size,
            "linear_value_head_dim": size,
        }, {}
    if family == "qwen3_vl_moe":  # two of eight experts do what the dense MLP does
        text |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": shape.intermediate_size // 2}
    return text, {"deepstack_visual_indexes": sorted({0, shape.vision_depth // 2, shape.vision_depth - 1})}


def all_words(vocab_size: int, family: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of about so many tokens, the words of ``texts`` among them.

    Two tokens a word, with and without a space before it; a few rows of the embedding stay empty, as in Qwen's.
    """
    if family == "qwen3_5":
        return bytes_and_words([f"word{number}" for number in range(vocab_size - 300)])
    return word_tokenizer([*texts, *(f"word{number}" for number in range(vocab_size // 2 - 100))])


def bytes_and_words(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the only kind that AutoTokenizer reads for Qwen3.5: prompts are bytes, words are drawn."""
    vocabulary = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    return Qwen3_5Tokenizer(
        vocab={token: id for id, token in enumerate(vocabulary)},
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )
