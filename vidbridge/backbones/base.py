"""What vidbridge asks of a family of video language models.

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
    """A family; it holds no weights and no state. Letters: B rows, S tokens of a row, N rows of one new token each."""

    model_class: ClassVar[type[PreTrainedModel]]  # with lm_head; its config_class has text_config and vision_config
    card_note: ClassVar[str] = ""  # what a reader of a saved model's card should know

    # -- prompts ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def patchify(self, frames: np.ndarray, **numbers: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Cut frames [T, H, W, 3] uint8 into patch vectors [patches, D] float32 and their grid (t, h, w).

        ``numbers`` are those of preprocessor_config.json, with the limits ``min_pixels`` and ``max_pixels`` of a frame.
        """

    @abstractmethod
    def video_ids(
        self, config: PretrainedConfig, tokens: ChatTokens, clip: Clip, grid: Sequence[int]
    ) -> Sequence[int]:
        """Return the token ids that replace a clip's one placeholder in the chat template."""

    @abstractmethod
    def positions(
        self, config: PretrainedConfig, input_ids: torch.Tensor, grids: torch.Tensor, clips: Sequence[Clip]
    ) -> tuple[torch.Tensor, int]:
        """Return rotary positions [3, L] int64 of a prompt [L], and the rope delta.

        The first completion token stands at L + delta on all three axes.
        """

    # -- the model ----------------------------------------------------------------------------------------------------

    def text_model(self, module: nn.Module) -> Any:
        """Return the language model without its head: ``layers`` and a ``config`` of its own."""
        return module.get_submodule("model.language_model")

    def vision_tower(self, module: nn.Module) -> Any:
        """Return the vision tower: ``blocks`` and a ``config`` of its own."""
        return module.get_submodule("model.visual")

    @abstractmethod
    def prepare(self, module: PreTrainedModel) -> None:
        """Change a loaded model so that ``hidden`` works and is fast. Weights, their names and classes stay."""

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
        """Return the final hidden states [B, S, hidden], video features at their tokens."""

    @abstractmethod
    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        """Return the final hidden states [N, hidden] of one text token [N] a row at positions [N]."""

    # -- files --------------------------------------------------------------------------------------------------------

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the content of a config.json that transformers 5 has written, as the released models have it."""
        return content
