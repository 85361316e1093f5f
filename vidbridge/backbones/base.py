"""The interface to a family of video language models.

A family says how frames and text become a prompt, how its layers are called with our attention inside them, how its
files are laid out, and where its parts are. Everything else in vidbridge is the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from vidbridge.backbones.attention_interface import Attends
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip


class Backbone(ABC):
    """One family; it holds no weights and no state.

    Letters in shapes: B rows, S tokens of a row, L tokens of a prompt, N rows of one new token each.
    """

    model_class: ClassVar[type[PreTrainedModel]]  # with lm_head; its config_class has text_config and vision_config
    card_note: ClassVar[str] = ""  # what a reader of a saved model's card should know

    # -- prompts ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def patchify(self, frames: np.ndarray, **numbers: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Cut frames [T, H, W, 3] uint8 into patch vectors [patches, D] float32 and their grid (t, h, w).

        Keywords: patch_size, merge_size, temporal_patch_size, image_mean, image_std; min_pixels and max_pixels of a
        frame, and resizes, whether frames may be brought within them. ValueError for frames of another form.
        """

    @abstractmethod
    def video_ids(
        self, config: PretrainedConfig, tokens: ChatTokens, clip: Clip, grid: Sequence[int]
    ) -> Sequence[int]:
        """Return the ids in the place of a clip's placeholder, a video_token_id for each merged patch of its grid."""

    @abstractmethod
    def positions(
        self, config: PretrainedConfig, input_ids: torch.Tensor, grids: torch.Tensor, clips: Sequence[Clip]
    ) -> tuple[torch.Tensor, int]:
        """Return rotary positions [3, L] int64 of a prompt [L], and the rope delta.

        The first completion token stands at L + delta on all three axes.
        """

    # -- the model ----------------------------------------------------------------------------------------------------

    def text_model(self, module: nn.Module) -> Any:
        """Return the language model without lm_head, a module with ``layers`` and a ``config`` of its own."""
        return module.get_submodule("model.language_model")

    def vision_tower(self, module: nn.Module) -> Any:
        """Return the vision tower, a module with ``blocks`` and a ``config`` of its own."""
        return module.get_submodule("model.visual")

    @abstractmethod
    def prepare(self, module: PreTrainedModel) -> None:
        """Change a loaded model in place so that ``hidden`` and ``next_hidden`` work. Weights and classes stay."""

    @abstractmethod
    def hidden(
        self,
        module: PreTrainedModel,
        input_ids: torch.Tensor,  # [B, S]
        pixel_values: torch.Tensor,  # patches of all videos, in order
        grids: torch.Tensor,  # [videos, 3]
        position_ids: torch.Tensor,  # [3, B, S]
        attention: Attends,
    ) -> torch.Tensor:
        """Return the hidden states [B, S, hidden] after the last norm; video tokens have the tower's features."""

    @abstractmethod
    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        """Return the hidden states [N, hidden] after the last norm of one new text token a row: a decoding step."""

    # -- files --------------------------------------------------------------------------------------------------------

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the content of a config.json that transformers 5 has written, as the released models have it."""
        return content
