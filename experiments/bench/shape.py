"""What is measured: folders with random weights, and prompts and completions of exactly so many tokens."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator

import numpy as np
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import vidbridge
from experiments.ablations.manifest import composed
from experiments.bench.families import MERGE, PATCH, TEMPORAL, Shape, all_words, shape_config
from vidbridge.backbones import backbone_of
from vidbridge.config.choices import Schedule
from vidbridge.config.schema import OptimConfig
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.memory_plan.stand_in import config_of
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.shapes_world.create_model import SPECIAL_TOKENS
from vidbridge.text.prompts import PromptTemplate
from vidbridge.types import Clip, Completion, EncodedPrompt, Group, Prompt, Sample

EMBEDDED = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / "tiny_qwen2_5_vl"
NUM_FRAMES = 16
FRAMES = FrameBudget(fps=None, max_frames=NUM_FRAMES, min_pixels=(PATCH * MERGE) ** 2, max_pixels=2**20)
QUESTION = (
    "Watch the whole video closely, from the first frame to the last. Which things move, in which order do they begin, "
    "and what has changed in the end? Describe the events one after the other, each in a short sentence of its own, "
    "and say at last which of them you are least sure about."
)
SYSTEM = "Note what you see in <think> </think>, then reply in <answer> </answer>."


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The same weights twice."""

    plain: PreTrainedModel  # as it comes from from_pretrained
    policy: Policy


def small(shape: Shape, family: str = "qwen2_5_vl") -> PretrainedConfig:
    """The configuration of a model of this size."""
    return config_of(shape_config(shape, family))


def released(name: str) -> PretrainedConfig:
    """That of a released model, by the numbers of conf/model/NAME.yaml."""
    return config_of(composed(name, [f"model={name}"]).model.shape)


def load_sides(shape: Shape, family: str = "qwen2_5_vl") -> Sides:
    """Both models on the CPU, in 32 bits, from one folder that is gone afterwards."""
    with random_folder(small(shape, family)) as folder:
        plain = backbone_of(family).model_class.from_pretrained(folder, dtype=torch.float32).train()
        module = load_model(folder, device="cpu")
        processor = Processor.from_folder(folder, FRAMES)
    return Sides(plain=plain, policy=Policy(module, processor, engine_for(module)))


def load_policy(shape: Shape, *, max_packed_tokens: int, **loading: object) -> Policy:
    """Our side alone, on the device and in the dtype that ``loading`` says."""
    with random_folder(small(shape)) as folder:
        module = load_model(folder, **loading)
        processor = Processor.from_folder(folder, FRAMES)
    return Policy(module, processor, engine_for(module), max_packed_tokens=max_packed_tokens)


@contextmanager
def random_folder(config: PretrainedConfig) -> Iterator[str]:
    """A model folder with random weights in 32 bits, gone afterwards."""
    disable_progress_bar()
    with TemporaryDirectory() as folder:
        write_settings(Path(folder), config)
        torch.manual_seed(0)
        backbone_of(config.model_type).model_class(config).save_pretrained(folder)
        yield folder


def random_module(config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """In bfloat16 and made where it is: billions of numbers."""
    torch.manual_seed(0)
    with device:
        return backbone_of(config.model_type).model_class._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )


def write_folder(folder: Path, config: PretrainedConfig, device: torch.device) -> None:
    """A model folder as from the hub: random weights in bfloat16, and the words of the shapes world."""
    write_settings(folder, config, AutoTokenizer.from_pretrained(EMBEDDED))
    random_module(config, device).save_pretrained(folder)


def engine_for(module: PreTrainedModel) -> LocalEngine:
    return LocalEngine(module, OptimConfig(lr=1e-6, schedule=Schedule.constant), total_updates=100)


def write_settings(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Everything of a model folder but the weights; None: a tokenizer that fills the vocabulary.

    ``config`` gets the tokenizer's ids.
    """
    text, vision = config.text_config, config.vision_config
    tokenizer = tokenizer or all_words(text.vocab_size, config.model_type, [SYSTEM, QUESTION, "system user assistant"])
    assert len(tokenizer) <= text.vocab_size
    tokenizer.save_pretrained(folder)
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))))
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id, config.vision_end_token_id = ids["<|vision_start|>"], ids["<|vision_end|>"]
    for section in (config, text):
        section.bos_token_id = None
        section.eos_token_id, section.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    config.save_pretrained(folder)
    preprocessor = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def random_clip(video_tokens: int, *, seed: int, patch: int = PATCH) -> Clip:
    """Square frames of noise, two a second, that become so many tokens: one for 2 x 2 patches of a pair of frames."""
    side = math.isqrt(video_tokens * TEMPORAL // NUM_FRAMES)
    assert side * side * NUM_FRAMES == video_tokens * TEMPORAL, f"no square frames give {video_tokens} tokens"
    pixels = side * patch * MERGE
    frames = np.random.default_rng(seed).integers(0, 256, (NUM_FRAMES, pixels, pixels, 3), dtype=np.uint8)
    return Clip(frames=frames, times_s=(np.arange(NUM_FRAMES) + 0.5) / 2)


def random_prompt(video_tokens: int, *, seed: int, patch: int = PATCH) -> Prompt:
    messages = PromptTemplate(text=QUESTION, system=SYSTEM).messages({}, num_videos=1)
    return Prompt(messages=messages, clips=(random_clip(video_tokens, seed=seed, patch=patch),))


def encode(processor: Processor, video_tokens: int, *, seed: int) -> EncodedPrompt:
    """A random prompt as tensors."""
    encoded = processor.encode(_prompt_for(processor, video_tokens, seed))
    assert int((encoded.input_ids == processor.config.video_token_id).sum()) == video_tokens
    return encoded


def _prompt_for(processor: Processor, video_tokens: int, seed: int) -> Prompt:
    return random_prompt(video_tokens, seed=seed, patch=processor.config.vision_config.patch_size)


def random_group(
    processor: Processor, *, video_tokens: int, group_size: int, completion_tokens: int, seed: int = 0
) -> Group:
    """A prompt with ``group_size`` completions of exactly ``completion_tokens`` random words."""
    prompt = _prompt_for(processor, video_tokens, seed)
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
