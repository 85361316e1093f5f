"""The arithmetic and the reading that a model cannot do without: what a measured time is held against."""

from __future__ import annotations

from typing import Any, Sequence

from torch import nn
from transformers import PreTrainedModel

from vidbridge.backbones import backbone_of
from vidbridge.config.choices import Dtype
from vidbridge.config.schema import ModelConfig
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.policy.packing import packed_tokens
from vidbridge.policy.policy import Policy
from vidbridge.types import Group


def needed_flops(policy: Policy, group: Group) -> dict[str, float]:
    """Of forward and backward, part by part; what is computed a second time does not count.

    A weight costs 6 operations for each token that it works on: multiply and add, forward and for two gradients. A
    query that sees a key costs 12 * heads * head size in each layer that attends: two products, likewise. A token in a
    recurrent layer costs 18 for each number of the memory: reading twice and writing, likewise. The prompt of L tokens
    is computed once, a completion's last token not at all; each of the other T - 1 sees the prompt, its own past and
    itself. In the vision tower a patch sees its frame or its window. Left out are the patch embedding, norms and
    rotations.
    """
    module, size = policy.module, size_of(policy)
    backbone, vision = backbone_of(module.config.model_type), module.config.vision_config
    prompt_tokens, num_patches = len(group.encoded.input_ids), len(group.encoded.pixel_values)
    lengths = [len(done.token_ids) for done in group.completions]
    seen = prompt_tokens * (prompt_tokens + 1) / 2
    seen += sum((length - 1) * prompt_tokens + (length - 1) * length / 2 for length in lengths)
    whole_frames = getattr(vision, "fullatt_block_indexes", range(vision.depth))
    seen_in_vision = sum(
        pairs_in_frames(grid, None if layer in whole_frames else window_of(vision))
        for grid in group.encoded.grid_thw.tolist()
        for layer in range(vision.depth)
    )
    layers, tower = backbone.text_model(module).layers, backbone.vision_tower(module)
    idle = numbers(layers) - size.active_in_text
    mergers = [part for name, part in tower.named_children() if "merger" in name]
    return {
        "text": 6 * (matrix_weights(layers) - idle) * packed_tokens(group),
        "text_attention": 12 * size.query_width * size.attending * seen,
        "text_memory": 18 * memory_numbers(module) * packed_tokens(group),
        "lm_head": 6 * module.lm_head.weight.numel() * sum(lengths),
        "vision": 6 * matrix_weights(tower.blocks) * num_patches,
        "vision_attention": 12 * vision.hidden_size * seen_in_vision,
        "merger": 6 * sum(map(matrix_weights, mergers)) * num_patches // vision.spatial_merge_size**2,
    }


def size_of(policy: Policy) -> ModelSize:
    dtype = Dtype(str(policy.module.dtype).removeprefix("torch."))
    return ModelSize.of(policy.processor.config, ModelConfig(name="", path="", dtype=dtype))


def numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def matrix_weights(module: nn.Module) -> int:
    """All but norms and biases."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def memory_numbers(module: PreTrainedModel) -> int:
    """In the memories of all recurrent layers, for one sequence."""
    text = module.config.text_config
    recurrent = getattr(text, "layer_types", []).count("linear_attention")
    if not recurrent:
        return 0
    return int(recurrent * text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim)


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


def needed_bytes(policy: Policy, group: Group, num_tokens: int) -> float:
    """Read by one decoding step, and written, on average over ``num_tokens``.

    The weights of the language model and the vocabulary projection, of experts those that one of the rows asks for if
    each asks for any of them alike; keys and values, those of the prompt once for all completions, and of each
    completion its past, half of the tokens on average; the states of recurrent layers, read and written.
    """
    module, size, rows = policy.module, size_of(policy), len(group.completions)
    layers = backbone_of(module.config.model_type).text_model(module).layers
    itemsize = module.dtype.itemsize
    idle = numbers(layers) - size.active_in_text
    if idle:
        text = module.config.text_config
        idle *= (1 - text.num_experts_per_tok / text.num_experts) ** (rows - 1)
    of_a_token = 2 * size.attending * size.key_width * itemsize
    tokens = len(group.encoded.input_ids) + rows * num_tokens / 2
    weights = (numbers(layers) - idle + module.lm_head.weight.numel()) * itemsize
    return weights + of_a_token * tokens + 2 * rows * size.state
