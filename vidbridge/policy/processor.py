"""Between text + frames and tensors: everything a checkpoint folder says about its inputs.

Does what the Hugging Face processor of the family does for videos and images, without constructing it (it needs
torchvision): renders the chat template, cuts frames into patches, puts each clip's tokens in the place of its
placeholder, and gives every token its rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from vidbridge.backbones import Backbone, backbone_of
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.model_folder import (
    base_of,
    read_config,
    read_json,
    read_preprocessing,
    rename_tokenizer_keys,
    write_preprocessing,
)
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip, EncodedPrompt, Prompt


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Made by ``from_folder``; holds no weights."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    frames: FrameBudget
    max_prompt_tokens: int
    settings: Mapping[str, Mapping[str, Any]] = field(repr=False)  # of read_preprocessing

    @classmethod
    def from_folder(cls, path: str | Path, frames: FrameBudget, max_prompt_tokens: int = 8192) -> Processor:
        """Read tokenizer, chat template and preprocessing numbers of a checkpoint (local folder or hub id).

        Those of adapters are their model's.
        """
        path = base_of(str(path))
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
        """Return the processor for clips that are read in their final size, with the budget in ``frames``."""
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
    def backbone(self) -> Backbone:
        return backbone_of(self.config.model_type)

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    @cached_property
    def chat_tokens(self) -> ChatTokens:
        """Return how texts become tokens. No text spells a control token, nor a placeholder."""
        return ChatTokens(self.tokenizer, self.config.video_token_id, self.config.image_token_id)

    @cached_property
    def suppressed_ids(self) -> torch.Tensor:
        """[K] int64, ids a completion never holds: special tokens but EOS, and rows of the embedding without a word."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self.tokenizer.all_special_ids)
        unused = range(len(self.tokenizer), self.config.text_config.vocab_size)
        return torch.tensor(sorted((special | set(unused)) - {self.eos_id}), dtype=torch.long)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return what the model reads up to the assistant's turn, with one placeholder for each clip."""
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tensors of one prompt, ready for the assistant's turn.

        What a text spells is read as the letters it consists of, never as a control token. ValueError when messages and
        clips do not match or the prompt is longer than ``max_prompt_tokens``.
        """
        low, high, resizes = self.frames.min_pixels, self.frames.max_pixels, self.frames.multiple is None
        clips = [
            self.backbone.patchify(clip.frames, **self.numbers, min_pixels=low, max_pixels=high, resizes=resizes)
            for clip in prompt.clips
        ]
        grids = torch.tensor([grid for _, grid in clips], dtype=torch.long).reshape(-1, 3)

        ids = torch.tensor(self._with_clips(self.chat_tokens.ids(prompt.messages), prompt.clips, grids))
        if len(ids) > self.max_prompt_tokens:
            num_seen = int(self.is_vision(ids).sum())
            kind = "image" if all(clip.is_image for clip in prompt.clips) else "video"
            raise ValueError(
                f"a prompt of {len(ids)} tokens ({num_seen} {kind} + {len(ids) - num_seen} text) exceeds "
                f"max_prompt_tokens={self.max_prompt_tokens}: use fewer frames or pixels, or a shorter text"
            )

        positions, delta = self.backbone.positions(self.config, ids, grids, prompt.clips)
        nothing = np.empty((0, 3 * self.numbers["temporal_patch_size"] * self.numbers["patch_size"] ** 2), np.float32)
        return EncodedPrompt(
            input_ids=ids,
            position_ids=positions,
            rope_delta=delta,
            pixel_values=torch.from_numpy(np.concatenate([nothing, *(patches for patches, _ in clips)])),
            grid_thw=grids,
        )

    def _with_clips(self, ids: Sequence[int], clips: Sequence[Clip], grids: torch.Tensor) -> list[int]:
        """Put what the family makes of each clip in the place of its placeholder in ``ids``."""
        backbone, config = self.backbone, self.config
        kinds = {config.image_token_id: "image", config.video_token_id: "video"}
        held = [kinds[token] for token in ids if token in kinds]
        if held != (given := ["image" if clip.is_image else "video" for clip in clips]):
            raise ValueError(
                f"the messages hold placeholders for {', '.join(held) or 'nothing'}; "
                f"the clips are {', '.join(given) or 'none'}"
            )
        spelt = (
            backbone.image_ids(config, grid)
            if clip.is_image
            else backbone.video_ids(config, self.chat_tokens, clip, grid)
            for clip, grid in zip(clips, grids.tolist())
        )
        return [id for token in ids for id in (next(spelt) if token in kinds else (token,))]

    def is_vision(self, ids: torch.Tensor) -> torch.Tensor:
        """Return which of ``ids`` stand for patches of a video or an image, a bool for each."""
        return self.backbone.is_vision(self.config, ids)

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
