"""Between text + frames and tensors: everything a checkpoint folder says about its inputs.

Does what the Hugging Face processor of the family does for video prompts, without constructing it (it needs
torchvision): renders the chat template, cuts frames into patches, widens each video placeholder to one token for each
merged patch, and gives every token its rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLConfig

from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.model_folder import (
    read_config,
    read_json,
    read_preprocessing,
    rename_tokenizer_keys,
    write_preprocessing,
)
from vidbridge.policy.patches import patchify
from vidbridge.policy.positions import mrope_positions
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip, EncodedPrompt, Prompt


def frames_per_second(clip: Clip) -> float:
    """Sampling rate of a clip from its frame times; 1.0 for a single frame, whose rate has no meaning.

    Rounded, because the temporal positions are truncated to integers and 1.9999999 fps would shift them.
    """
    if len(clip.times_s) < 2:
        return 1.0
    span_s = float(clip.times_s[-1] - clip.times_s[0])
    if span_s <= 0:
        raise ValueError(f"the frame times of a clip must increase, got {clip.times_s.tolist()}")
    return round((len(clip.times_s) - 1) / span_s, 6)


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Made by ``from_folder``; holds no weights."""

    tokenizer: PreTrainedTokenizerBase
    config: Qwen2_5_VLConfig
    frames: FrameBudget
    max_prompt_tokens: int
    settings: Mapping[str, Mapping[str, Any]] = field(repr=False)  # of read_preprocessing

    @classmethod
    def from_folder(cls, path: str | Path, frames: FrameBudget, max_prompt_tokens: int = 8192) -> Processor:
        """Read tokenizer, chat template and preprocessing numbers of a checkpoint (local folder or hub id)."""
        path = str(path)
        config = read_config(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            if len(tokenizer) <= config.video_token_id:  # without its files an empty one is made up
                raise ValueError(f"it knows {len(tokenizer)} tokens, and a video is number {config.video_token_id}")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path!r} has no tokenizer that can be read (tokenizer.json): {error}") from error
        if (template := read_json(path, "chat_template.json")) is not None:
            # Older checkpoints keep the template that knows videos here and a text-only one in the tokenizer.
            tokenizer.chat_template = template["chat_template"]
        if tokenizer.chat_template is None:
            raise ValueError(f"{path!r} has no chat template (chat_template.jinja or chat_template.json)")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{path!r} has no token that ends a turn (eos_token in tokenizer_config.json)")
        processor = cls(
            tokenizer=tokenizer,
            config=config,
            frames=frames,
            max_prompt_tokens=max_prompt_tokens,
            settings=read_preprocessing(path),
        )
        processor.check()
        return processor

    def sized(self) -> Processor:
        """The same for clips that are read in their final size; its ``frames`` is the budget to read them with."""
        multiple = self.numbers["patch_size"] * self.numbers["merge_size"]
        return replace(self, frames=replace(self.frames, multiple=multiple))

    def check(self) -> None:
        """The numbers of the frames side and of the model must agree; ValueError names the one that does not."""
        vision = self.config.vision_config
        expected = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
        for name, number in expected.items():
            if self.numbers[name] != number:
                raise ValueError(
                    f"{name} is {self.numbers[name]} in preprocessor_config.json (or processor_config.json), "
                    f"{number} in config.json"
                )

    @cached_property
    def numbers(self) -> dict[str, Any]:
        merged = {key: value for content in self.settings.values() for key, value in content.items()}
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        if missing := [name for name in names if name not in merged]:
            raise ValueError(
                f"preprocessor_config.json (or processor_config.json) says nothing about {', '.join(missing)}"
            )
        return {name: merged[name] for name in names}

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    @cached_property
    def chat_tokens(self) -> ChatTokens:
        """How texts become tokens; what a text spells is never one of the control tokens, placeholders included."""
        return ChatTokens(self.tokenizer, self.config.video_token_id, self.config.image_token_id)

    @cached_property
    def suppressed_ids(self) -> torch.Tensor:
        """[K] int64, ids a completion never holds: special tokens but EOS, and rows of the embedding without a word."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self.tokenizer.all_special_ids)
        unused = range(len(self.tokenizer), self.config.text_config.vocab_size)
        return torch.tensor(sorted((special | set(unused)) - {self.eos_id}), dtype=torch.long)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return what the model reads up to the assistant's turn, with one placeholder for each video."""
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tensors of one prompt, ready for the assistant's turn.

        What a text spells is read as the letters it consists of, never as a control token. ValueError when messages and
        clips do not match or the prompt is longer than ``max_prompt_tokens``.
        """
        low, high, resizes = self.frames.min_pixels, self.frames.max_pixels, self.frames.multiple is None
        videos = [
            patchify(clip.frames, **self.numbers, min_pixels=low, max_pixels=high, resizes=resizes)
            for clip in prompt.clips
        ]
        grids = torch.tensor([grid for _, grid in videos], dtype=torch.long).reshape(-1, 3)

        ids = torch.tensor(self.chat_tokens.ids(prompt.messages), dtype=torch.long)
        ids = self._widen_placeholders(ids, grids)
        if len(ids) > self.max_prompt_tokens:
            num_video = int((ids == self.config.video_token_id).sum())
            raise ValueError(
                f"a prompt of {len(ids)} tokens ({num_video} video + {len(ids) - num_video} text) exceeds "
                f"max_prompt_tokens={self.max_prompt_tokens}: use fewer frames or pixels, or a shorter text"
            )

        vision = self.config.vision_config
        positions, delta = mrope_positions(
            ids,
            grids,
            [vision.temporal_patch_size / frames_per_second(clip) for clip in prompt.clips],
            video_token_id=self.config.video_token_id,
            merge_size=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second,
        )
        nothing = np.empty((0, 3 * self.numbers["temporal_patch_size"] * self.numbers["patch_size"] ** 2), np.float32)
        return EncodedPrompt(
            input_ids=ids,
            position_ids=positions,
            rope_delta=delta,
            pixel_values=torch.from_numpy(np.concatenate([nothing, *(patches for patches, _ in videos)])),
            video_grid_thw=grids,
        )

    def _widen_placeholders(self, ids: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Repeat the i-th video placeholder in ids [L] once for each merged patch of grids[i]."""
        is_video = ids == self.config.video_token_id
        if int(is_video.sum()) != len(grids) or bool((ids == self.config.image_token_id).any()):
            raise ValueError(
                f"the messages hold {int(is_video.sum())} video placeholders for {len(grids)} clips "
                f"(images are not supported)"
            )
        repeats = torch.ones_like(ids)
        repeats[is_video] = grids.prod(-1) // self.numbers["merge_size"] ** 2
        return torch.from_numpy(np.repeat(ids.numpy(), repeats.numpy()))  # in numpy for the reason told in patchify

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Token ids of an assistant's turn, EOS included; ValueError for tokens the policy may never produce."""
        ids = self.chat_tokens.text_ids(text)
        banned = set(self.suppressed_ids.tolist()) | {self.eos_id}
        if found := sorted(banned & set(ids)):
            tokens = self.tokenizer.convert_ids_to_tokens(found)
            raise ValueError(f"a completion may not hold {tokens}: {text!r}")
        return (*ids, self.eos_id)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, without EOS and padding."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save(self, path: str | Path) -> None:
        """Write tokenizer, chat template and preprocessing numbers beside the weights at ``path``."""
        self.tokenizer.save_pretrained(path)
        rename_tokenizer_keys(Path(path))
        write_preprocessing(Path(path), self.settings)
