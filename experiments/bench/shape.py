"""What is measured: folders with random weights, and prompts and completions of exactly so many tokens."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

import vidbridge
from experiments.bench.families import bytes_and_words, own_numbers
from vidbridge.backbones import backbone_of
from vidbridge.config.choices import Schedule
from vidbridge.config.schema import OptimConfig
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.shapes_world.create_model import SPECIAL_TOKENS, word_tokenizer
from vidbridge.text.prompts import PromptTemplate
from vidbridge.types import Clip, Completion, EncodedPrompt, Group, Prompt, Sample

EMBEDDED = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / "tiny_qwen2_5_vl"
PATCH, MERGE, TEMPORAL = 14, 2, 2  # of every Qwen2.5-VL; here of the other families too
NUM_FRAMES = 16
FRAMES = FrameBudget(fps=None, max_frames=NUM_FRAMES, min_pixels=(PATCH * MERGE) ** 2, max_pixels=2**20)
QUESTION = (
    "Watch the whole video closely, from the first frame to the last. Which things move, in which order do they begin, "
    "and what has changed in the end? Describe the events one after the other, each in a short sentence of its own, "
    "and say at last which of them you are least sure about."
)
SYSTEM = "Note what you see in <think> </think>, then reply in <answer> </answer>."


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


# the numbers of the released models
_VISION = {
    "vision_depth": 32,
    "vision_hidden_size": 1280,
    "vision_intermediate_size": 3420,
    "vision_heads": 16,
    "full_attention_blocks": (7, 15, 23, 31),
}
RELEASED = {
    "3b": Shape(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        mrope_section=(16, 24, 24),
        tied=True,
        **_VISION,
    ),
    "7b": Shape(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        mrope_section=(16, 24, 24),
        tied=False,
        **_VISION,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The same weights twice."""

    plain: PreTrainedModel  # as it comes from from_pretrained
    policy: Policy


def load_sides(shape: Shape, family: str = "qwen2_5_vl") -> Sides:
    """Both models on the CPU, in 32 bits, from one folder that is gone afterwards."""
    disable_progress_bar()
    model_class = backbone_of(family).model_class
    with TemporaryDirectory() as name:
        config = write_settings(Path(name), shape, family=family)
        torch.manual_seed(0)
        model_class(config).save_pretrained(name)
        plain = model_class.from_pretrained(name, dtype=torch.float32).train()
        module = load_model(name, device="cpu")
        processor = Processor.from_folder(name, FRAMES)
    return Sides(plain=plain, policy=Policy(module, processor, engine_for(module)))


def load_policy(shape: Shape, *, max_packed_tokens: int, **loading: object) -> Policy:
    """Our side alone, on the device and in the dtype that ``loading`` says."""
    disable_progress_bar()
    with TemporaryDirectory() as name:
        config = write_settings(Path(name), shape)
        torch.manual_seed(0)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(name)
        module = load_model(name, **loading)
        processor = Processor.from_folder(name, FRAMES)
    return Policy(module, processor, engine_for(module), max_packed_tokens=max_packed_tokens)


def random_module(config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """In bfloat16 and made where it is: billions of numbers."""
    torch.manual_seed(0)
    with device:
        return Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )


def write_folder(folder: Path, shape: Shape, device: torch.device) -> None:
    """A model folder as from the hub: random weights in bfloat16, and the words of the shapes world."""
    config = write_settings(folder, shape, AutoTokenizer.from_pretrained(EMBEDDED))
    random_module(config, device).save_pretrained(folder)


def engine_for(module: PreTrainedModel) -> LocalEngine:
    return LocalEngine(module, OptimConfig(lr=1e-6, schedule=Schedule.constant), total_updates=100)


def all_words(vocab_size: int, family: str) -> PreTrainedTokenizerFast:
    """Two tokens a word, with and without a space before it; a few rows of the embedding stay empty, as in Qwen's."""
    if family == "qwen3_5":
        return bytes_and_words([f"word{number}" for number in range(vocab_size - 300)])
    words = [f"word{number}" for number in range(vocab_size // 2 - 100)]
    return word_tokenizer([SYSTEM, QUESTION, "system user assistant", *words])


def write_settings(
    folder: Path, shape: Shape, tokenizer: PreTrainedTokenizerFast | None = None, *, family: str = "qwen2_5_vl"
) -> PretrainedConfig:
    """Everything of a model folder but the weights; None: a tokenizer that fills the vocabulary."""
    tokenizer = tokenizer or all_words(shape.vocab_size, family)
    text, tower = own_numbers(family, shape)
    assert len(tokenizer) <= shape.vocab_size
    tokenizer.save_pretrained(folder)
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))))
    config = AutoConfig.for_model(
        family,
        text_config={
            **text,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "vocab_size": shape.vocab_size,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            **tower,
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_intermediate_size,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden_size,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        tie_word_embeddings=shape.tied,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    config.save_pretrained(folder)
    preprocessor = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    return config


def random_clip(video_tokens: int, *, seed: int, num_frames: int = NUM_FRAMES) -> Clip:
    """Square frames of noise, two a second, that become exactly so many tokens: one for 28 x 28 pixels x 2 frames."""
    side = math.isqrt(video_tokens * TEMPORAL // num_frames)
    assert side * side * num_frames == video_tokens * TEMPORAL, f"no square frames give {video_tokens} tokens"
    pixels = side * PATCH * MERGE
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, pixels, pixels, 3), dtype=np.uint8)
    return Clip(frames=frames, times_s=(np.arange(num_frames) + 0.5) / 2)


def random_prompt(video_tokens: int, *, seed: int) -> Prompt:
    messages = PromptTemplate(text=QUESTION, system=SYSTEM).messages({}, num_videos=1)
    return Prompt(messages=messages, clips=(random_clip(video_tokens, seed=seed),))


def encode(processor: Processor, video_tokens: int, *, seed: int) -> EncodedPrompt:
    """A random prompt as tensors."""
    encoded = processor.encode(random_prompt(video_tokens, seed=seed))
    assert int((encoded.input_ids == processor.config.video_token_id).sum()) == video_tokens
    return encoded


def random_group(
    processor: Processor, *, video_tokens: int, group_size: int, completion_tokens: int, seed: int = 0
) -> Group:
    """A prompt with ``group_size`` completions of exactly ``completion_tokens`` random words."""
    prompt = random_prompt(video_tokens, seed=seed)
    allowed = torch.ones(processor.config.text_config.vocab_size, dtype=torch.bool)
    allowed[processor.suppressed_ids] = allowed[processor.eos_id] = False
    indices = torch.randint(
        int(allowed.sum()), (group_size, completion_tokens), generator=torch.Generator().manual_seed(seed)
    )
    rows = allowed.nonzero().flatten()[indices].tolist()
    return Group(
        sample=Sample(uid=f"random/{seed}", task="random", question=QUESTION, answer="", videos=()),
        prompt=prompt,
        encoded=encode(processor, video_tokens, seed=seed),
        completions=tuple(Completion(text="", token_ids=tuple(row), finished=False) for row in rows),
    )


def never_end(policy: Policy) -> list[int]:
    """From now on no completion of ``policy`` ends early; returns what others must suppress for the same effect."""
    eos = torch.tensor([policy.processor.eos_id], device=policy.suppressed_ids.device)
    policy.suppressed_ids = torch.cat([policy.suppressed_ids, eos])
    return policy.suppressed_ids.tolist()
