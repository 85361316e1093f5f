"""A released model that is not at hand, as far as plan=true needs one: its numbers, and prompts of about its length."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from vidbridge.backbones import backbone_of
from vidbridge.config.schema import ModelConfig, ShapeConfig
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.processor import Processor
from vidbridge.shapes_world.create_model import CHAT_TEMPLATE

CHARACTERS = 4  # of English text a token of Qwen's tokenizer, a little fewer than it really has; of other scripts 1
# The ids of the released Qwen2.5-VL and Qwen3-VL, of all sizes; Qwen3.5 has others, of which only the number matters.
IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


def is_at_hand(path: str) -> bool:
    """Return whether ``path`` is a folder, or a hub id whose tokenizer was downloaded before; asks no network."""
    if Path(path).exists():
        return True
    try:
        found = cached_file(path, "tokenizer.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return False
    return found is not None


def config_of(shape: ShapeConfig) -> PretrainedConfig:
    """Return the configuration of a model with these numbers and the ids of the released ones."""
    return backbone_of(shape.model_type).model_class.config_class(
        text_config={**shape.text, "eos_token_id": IDS["<|im_end|>"], "pad_token_id": IDS["<|endoftext|>"]},
        vision_config=dict(shape.vision),
        tie_word_embeddings=shape.tie_word_embeddings,
        image_token_id=IDS["<|image_pad|>"],
        video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"],
    )


def processor_of(spec: ModelConfig, frames: FrameBudget) -> Processor:
    """Return a processor whose grids, patches and video tokens are exact, and whose text tokens are estimated."""
    config = config_of(spec.shape)
    vision = config.vision_config
    numbers: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "image_mean": [0.0] * 3,  # what the pixels are does not matter here
        "image_std": [1.0] * 3,
    }
    return Processor(
        tokenizer=_counting_tokenizer(),
        config=config,
        frames=frames,
        max_prompt_tokens=spec.max_prompt_tokens,
        settings={"preprocessor_config.json": numbers},
    ).sized()


def _counting_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that makes about as many tokens as Qwen's, all of them unknown but the control tokens."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **IDS}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"[\x00-\x7f]{{1,{CHARACTERS}}}|[^\x00-\x7f]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in IDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def differences(shape: ShapeConfig, config: PretrainedConfig) -> Iterator[str]:
    """Yield where the numbers of ``shape`` are others than those of a config.json, a phrase each."""
    sections: dict[str, tuple[Mapping[str, Any], Any]] = {
        "text": (shape.text, config.text_config),
        "vision": (shape.vision, config.vision_config),
    }
    for section, (numbers, there) in sections.items():
        for name, number in numbers.items():
            found = getattr(there, name, None)
            if isinstance(number, Mapping) and isinstance(found, Mapping):  # settings that may have others beside them
                found = {key: found.get(key) for key in number}
            if found != number:
                yield f"model.shape.{section}.{name} is {number}, config.json says {found}"
    if shape.text and shape.tie_word_embeddings != config.tie_word_embeddings:
        found = config.tie_word_embeddings
        yield f"model.shape.tie_word_embeddings is {shape.tie_word_embeddings}, config.json says {found}"
