"""The embedded models before any training: random weights of the numbers in ``model.shape``, a word-level tokenizer.

The class, the file format and the chat format are those of the released models; only the numbers are small.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Iterable, Mapping

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vidbridge.backbones import backbone_of
from vidbridge.config.schema import ShapeConfig
from vidbridge.rewards.style import CONNECTIVES, HEDGES
from vidbridge.shapes_world.bad_habits import Spoiler
from vidbridge.shapes_world.language import COLOURS, KINDS, SHAPES, SIZES
from vidbridge.tasks.rows import TaskRows
from vidbridge.text import prompts
from vidbridge.text.options import LETTERS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # a token each, but not special: they are text
LONGEST_S = 60  # of the clips whose times can be told in words
_WORD = r" ?\w+|[^\w\s]|\s"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def create_folder(folder: Path, texts: Iterable[str], shape: ShapeConfig, *, seed: int) -> None:
    """Write a Hugging Face model folder with random weights, whose vocabulary is the words of ``texts``."""
    backbone = backbone_of(shape.model_type)
    tokenizer = word_tokenizer([*texts, *backbone.spelt_times(tenth / 10 for tenth in range(10 * LONGEST_S))])
    tokenizer.save_pretrained(folder)
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))))
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    config = backbone.model_class.config_class(
        text_config={**shape.text, **ends, "bos_token_id": None, "vocab_size": len(tokenizer)},
        vision_config=dict(shape.vision),
        tie_word_embeddings=shape.tie_word_embeddings,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **ends,
    )
    torch.manual_seed(seed)
    model = backbone.model_class(config)
    for name, id in ends.items():
        setattr(model.generation_config, name, id)
    model.save_pretrained(folder)
    vision = config.vision_config
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "min_pixels": 48 * 48,
        "max_pixels": 48 * 48,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each word, with and without the space before it; decoding gives the text back exactly."""
    words = {match for text in texts for match in re.findall(_WORD, text)}
    words |= {" " + word for word in words if word[0].isalnum()} | {word.lstrip(" ") for word in words if word != " "}
    # tags come from the added tokens; their letters would otherwise be split and take up entries
    vocabulary = [*SPECIAL_TOKENS, "<unk>", *sorted(words - set(TAGS))]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def texts_of(tasks: Mapping[str, TaskRows], *, num_samples: int = 400) -> list[str]:
    """Return all that the embedded model must read and write: prompts, gold and spoilt answers, fixed words.

    The fixed words let a researcher reward what the base never says (any connective or hedge of the wording reward).
    """
    spoilers = (Spoiler(plain=1.0), Spoiler(hedged=1.0), Spoiler(guessed=1.0))
    rng = np.random.default_rng(0)
    texts = ["system", "user", "assistant", *LETTERS[:8], *CONNECTIVES, *HEDGES]
    texts += [*SHAPES, *COLOURS, *SIZES, *KINDS]
    for task in tasks.values():
        for sample in map(task.sample, range(min(num_samples, len(task)))):
            texts += [*prompts.texts_in(task.messages(sample)), task.gold(sample)]
            texts += [each.completion(sample, rng) for each in spoilers]
    return texts
