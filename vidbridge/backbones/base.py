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

from vidbridge.backbones import layers
from vidbridge.backbones.attention_interface import Attends, use_our_attention
from vidbridge.backbones.patches import embed_patches_by_matmul, patchify
from vidbridge.text.chat_tokens import ChatTokens
from vidbridge.types import Clip


class Backbone(ABC):
    """A family; it holds no weights and no state. Methods with a body are what the families of Qwen have in common.

    Letters in shapes: B rows, S tokens of a row, N rows of one new token each.
    """

    model_class: ClassVar[type[PreTrainedModel]]  # with lm_head; its config_class has text_config and vision_config
    norm_class: ClassVar[type[nn.Module]]  # of the language model's norms, which divide by the root mean square
    can_be_captured: ClassVar[bool] = True  # whether next_hidden asks nothing of the host: one CUDA graph launches it
    card_note: ClassVar[str] = ""  # what a reader of a saved model's card should know

    # -- prompts ------------------------------------------------------------------------------------------------------

    def patchify(self, frames: np.ndarray, **numbers: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Cut frames [T, H, W, 3] uint8 into patch vectors [patches, D] float32 and their grid (t, h, w).

        ``numbers`` are those of preprocessor_config.json, with the limits ``min_pixels`` and ``max_pixels`` of a frame.
        """
        return patchify(frames, **numbers)

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

    def prepare(self, module: PreTrainedModel) -> None:
        """Change a loaded model so that ``hidden`` works and is fast. Weights, their names and classes stay."""
        embed_patches_by_matmul(self.vision_tower(module).get_submodule("patch_embed.proj"))
        use_our_attention(self.text_model(module), self.vision_tower(module))

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
        embeddings = module.get_input_embeddings()(input_ids)
        more: Mapping[str, Any] = {}
        if len(grids):
            seen = module.get_video_features(pixel_values, grids)
            is_video = input_ids == module.config.video_token_id
            features = torch.cat(seen.pooler_output).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(is_video.unsqueeze(-1), features)
            more = self.for_layers(seen, is_video)
        return self.text_model(module)(
            inputs_embeds=embeddings, position_ids=position_ids, use_cache=False, shared_prefix=attention, **more
        ).last_hidden_state

    def for_layers(self, seen: Any, is_video: torch.Tensor) -> Mapping[str, Any]:
        """Return what the decoder layers are told about the videos beside their embeddings.

        ``seen`` is what the vision tower gave, ``is_video`` [B, S] bool says which tokens are the videos'.
        """
        return {}

    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        """Return the final hidden states [N, hidden] of one text token [N] a row at positions [N]."""
        return layers.next_hidden(self.text_model(module), self.norm_class, token_ids, positions, attention)

    # -- arithmetic of plan=true --------------------------------------------------------------------------------------

    def mlp_width(self, config: PretrainedConfig) -> int:
        """Return the inner numbers of the MLP that work on one token."""
        width: int = config.text_config.intermediate_size
        return width

    def active_weights(self, module: PreTrainedModel) -> float:
        """Return how many numbers of the decoder layers work on one token."""
        return sum(weight.numel() for weight in self.text_model(module).layers.parameters())

    # -- files --------------------------------------------------------------------------------------------------------

    def released_config(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the content of a config.json that transformers 5 has written, as the released models have it."""
        return content
