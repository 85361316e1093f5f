"""The arithmetic and the reading that a model cannot do without: what a measured time is held against."""

from __future__ import annotations

from typing import Any, Sequence

from torch import nn
from transformers import PreTrainedModel

from vidbridge.policy.packing import packed_tokens
from vidbridge.types import Group


def needed_flops(module: PreTrainedModel, group: Group) -> dict[str, float]:
    """Of forward and backward, part by part; what is computed a second time does not count.

    A weight costs 6 operations a token: multiply and add, forward and for two gradients. A query that sees a key costs
    12 * heads * head size in each layer: two products, likewise. The prompt of L tokens is computed once, a
    completion's last token not at all; each of the other T - 1 sees the prompt, its own past and itself. In the vision
    tower a patch sees its frame or its window. The patch embedding, norms and rotations are left out.
    """
    text, vision = module.config.text_config, module.config.vision_config
    prompt_tokens, num_patches = len(group.encoded.input_ids), len(group.encoded.pixel_values)
    lengths = [len(done.token_ids) for done in group.completions]
    seen = prompt_tokens * (prompt_tokens + 1) / 2
    seen += sum((length - 1) * prompt_tokens + (length - 1) * length / 2 for length in lengths)
    seen_in_vision = sum(
        pairs_in_frames(grid, None if layer in vision.fullatt_block_indexes else window_of(vision))
        for grid in group.encoded.grid_thw.tolist()
        for layer in range(vision.depth)
    )
    tower = module.model.visual
    return {
        "text": 6 * matrix_weights(module.model.language_model.layers) * packed_tokens(group),
        "text_attention": 12 * text.hidden_size * text.num_hidden_layers * seen,  # heads * head size = hidden size
        "lm_head": 6 * module.lm_head.weight.numel() * sum(lengths),
        "vision": 6 * matrix_weights(tower.blocks) * num_patches,
        "vision_attention": 12 * vision.hidden_size * seen_in_vision,
        "merger": 6 * matrix_weights(tower.merger) * num_patches // vision.spatial_merge_size**2,
    }


def matrix_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)


def window_of(vision: Any) -> int:
    """Its side in patches."""
    return vision.window_size // vision.patch_size // vision.spatial_merge_size * vision.spatial_merge_size


def pairs_in_frames(grid: Sequence[int], window: int | None) -> int:
    """Pairs of patches of a video (t, h, w) that see each other: all of a frame, or those in one window of a frame.

    5 x 4 patches in windows of 4: one of 16 and one of 4 patches, 16 * 16 + 4 * 4 pairs a frame.
    """
    frames, *sides = grid
    tall, wide = (sides_of_windows(side, window or side) for side in sides)
    return frames * sum((height * width) ** 2 for height in tall for width in wide)


def sides_of_windows(side: int, window: int) -> list[int]:
    """The last one is smaller when the windows do not fit."""
    return [min(window, side - start) for start in range(0, side, window)]


def needed_bytes(module: PreTrainedModel, group: Group, num_tokens: int) -> float:
    """Read by one decoding step, on average over ``num_tokens``.

    The weights of the language model and the vocabulary projection, and keys and values: those of the prompt once for
    all completions, and of each completion its past, half of the tokens on average.
    """
    text = module.config.text_config
    weights = sum(weight.nbytes for weight in module.model.language_model.layers.parameters())
    head_size = text.hidden_size // text.num_attention_heads
    of_a_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * module.dtype.itemsize
    tokens = len(group.encoded.input_ids) + len(group.completions) * num_tokens / 2
    return weights + module.lm_head.weight.nbytes + of_a_token * tokens
