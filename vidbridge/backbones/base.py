"""The interface to a family of video language models.

A family says how frames and text become a prompt, how its layers are called with our attention inside them, how its
files are laid out, and where its parts are. Everything else in vidbridge is the same for all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Iterable, Mapping, Sequence

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
    """One family; it holds no weights and no state. What has a body is common to the families of Qwen.

    Letters in shapes: B rows, S tokens of a row, L tokens of a prompt, N rows of one new token each.
    """

    model_class: ClassVar[type[PreTrainedModel]]  # with lm_head; its config_class has text_config and vision_config
    norm_class: ClassVar[type[nn.Module]]  # of the language model's norms, which divide by the root mean square
    can_be_captured: ClassVar[bool] = True  # whether next_hidden asks nothing of the host: one CUDA graph launches it
    card_note: ClassVar[str] = ""  # what a reader of a saved model's card should know

    # -- prompts ------------------------------------------------------------------------------------------------------

    def patchify(self, frames: np.ndarray, **numbers: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Cut frames [T, H, W, 3] uint8 into patch vectors [patches, D] float32 and their grid (t, h, w).

        Keywords: patch_size, merge_size, temporal_patch_size, image_mean, image_std; min_pixels and max_pixels of a
        frame, and resizes, whether frames may be brought within them. ValueError for frames of another form.
        """
        return patchify(frames, **numbers)

    @abstractmethod
    def video_ids(
        self, config: PretrainedConfig, tokens: ChatTokens, clip: Clip, grid: Sequence[int]
    ) -> Sequence[int]:
        """Return the ids in the place of a video's placeholder, a video_token_id for each merged patch of its grid."""

    def image_ids(self, config: PretrainedConfig, grid: Sequence[int]) -> Sequence[int]:
        """Return the ids in the place of an image's placeholder, an image_token_id for each merged patch."""
        return [config.image_token_id] * (math.prod(grid) // config.vision_config.spatial_merge_size**2)

    def vision_token_ids(self, config: PretrainedConfig) -> tuple[int, ...]:
        """Return the ids of the tokens that stand for merged patches."""
        return config.image_token_id, config.video_token_id

    def is_vision(self, config: PretrainedConfig, input_ids: torch.Tensor) -> torch.Tensor:
        """Return which of ``input_ids`` stand for merged patches, a bool for each."""
        return torch.stack([input_ids == id for id in self.vision_token_ids(config)]).any(dim=0)

    def spelt_times(self, times_s: Iterable[float]) -> list[str]:
        """Return how a prompt tells each of these times of a video in words; nothing where positions tell them."""
        return []

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

    def routers(self, module: nn.Module) -> Sequence[nn.Module]:
        """Return the routers of a mixture of experts, each giving logits, weights and experts; none if dense."""
        return ()

    def prepare(self, module: PreTrainedModel) -> None:
        """Change a loaded model in place so that ``hidden`` and ``next_hidden`` work. Weights and classes stay."""
        embed_patches_by_matmul(self.vision_tower(module).get_submodule("patch_embed.proj"))
        use_our_attention(self.text_model(module), self.vision_tower(module))

    def hidden(
        self,
        module: PreTrainedModel,
        input_ids: torch.Tensor,  # [B, S]
        pixel_values: torch.Tensor,  # patches of all videos and images, in order
        grids: torch.Tensor,  # [V, 3] of them
        position_ids: torch.Tensor,  # [3, B, S]
        attention: Attends,
    ) -> torch.Tensor:
        """Return the hidden states [B, S, hidden] after the last norm; tokens of patches have the tower's features."""
        embeddings = module.get_input_embeddings()(input_ids)
        more: Mapping[str, Any] = {}
        if len(grids):
            seen = module.get_video_features(pixel_values, grids)  # to the tower an image is a video of one grid
            is_vision = self.is_vision(module.config, input_ids)
            features = torch.cat(seen.pooler_output).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(is_vision.unsqueeze(-1), features)
            more = self.for_layers(seen, is_vision)
        return self.text_model(module)(
            inputs_embeds=embeddings, position_ids=position_ids, use_cache=False, shared_prefix=attention, **more
        ).last_hidden_state

    def for_layers(self, seen: Any, is_vision: torch.Tensor) -> Mapping[str, Any]:
        """Return what the decoder layers are told about videos and images beside their embeddings.

        ``seen`` is what the vision tower gave, ``is_vision`` [B, S] bool says which tokens stand for its patches.
        """
        return {}

    def next_hidden(
        self, module: PreTrainedModel, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attends
    ) -> torch.Tensor:
        """Return the hidden states [N, hidden] after the last norm of one new text token a row: a decoding step."""
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
