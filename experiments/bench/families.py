"""The same sizes in every family: what config.json says beside the numbers of a Shape, and a tokenizer it can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3_5Tokenizer

from vidbridge.shapes_world.create_model import CHAT_TEMPLATE, SPECIAL_TOKENS

if TYPE_CHECKING:
    from experiments.bench.shape import Shape


def own_numbers(family: str, shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
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


def bytes_and_words(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the only kind that AutoTokenizer reads for Qwen3.5: prompts are bytes, words are drawn."""
    vocabulary = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    return Qwen3_5Tokenizer(
        vocab={token: id for id, token in enumerate(vocabulary)},
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )
