"""How near to the device's limits: a random Qwen2.5-VL of 3B or 7B in bfloat16 on one CUDA device.

    python -m experiments.bench.gpu [--size 7b] [--json FILE]

Nothing is downloaded. One group: 8 completions of 512 tokens after 1568 video tokens.
- `mfu`: the arithmetic that the shared-prefix rule makes necessary (`needed_flops`), divided by the time of forward and
  backward and by the peak of the device.
- `decode_bandwidth_frac`: the time in which a decoding step could read what it must (`needed_bytes`) at the speed of a
  large copy, divided by the time that it takes, sampling included.
- `speedup`: against the peers' rows, which repeat prompt and video. They run on the same module, with our patch
  embedding, and two at a time: all eight would not fit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from experiments.bench.harness import CONSOLE, announcing, arguments, finish, medians, peak_extra_mb, show
from experiments.bench.learner import Learner, relative_error
from experiments.bench.shape import FRAMES, TINY, Shape, Sides, never_end, random_group, write_settings
from vidbridge.policy.attention import enable_shared_prefix
from vidbridge.policy.loading import embed_patches_by_matmul
from vidbridge.policy.packing import packed_tokens
from vidbridge.policy.processor import Processor
from vidbridge.policy.qwen_vl import QwenVLPolicy
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.types import Group

VISION = {
    "vision_depth": 32,
    "vision_hidden_size": 1280,
    "vision_intermediate_size": 3420,
    "vision_heads": 16,
    "full_attention_blocks": (7, 15, 23, 31),
}
SHAPES = {
    "3b": Shape(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        mrope_section=(16, 24, 24),
        tied=True,
        **VISION,
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
        **VISION,
    ),
}
# dense bfloat16, TFLOP/s, by the data sheets; the first name that fits
PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362}
ROWS_AT_ONCE = 2


def load_policy(shape: Shape, device: torch.device) -> QwenVLPolicy:
    """Made where it runs: the same module that load_model makes of a folder."""
    with TemporaryDirectory() as folder:
        config = write_settings(Path(folder), shape)
        processor = Processor.from_folder(folder, FRAMES)
    torch.manual_seed(0)
    with device:
        module = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    embed_patches_by_matmul(module)
    enable_shared_prefix(module)
    return QwenVLPolicy(module, processor)


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
        for grid in group.encoded.video_grid_thw.tolist()
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


def copier(num_bytes: int, device: torch.device) -> Callable[[], Any]:
    """Reads and writes ``num_bytes`` each."""
    source, target = torch.zeros(2, num_bytes, dtype=torch.uint8, device=device)
    return partial(target.copy_, source)


def multiplier(size: int, device: torch.device) -> Callable[[], Any]:
    """2 * size**3 operations."""
    one, other, out = torch.zeros(3, size, size, dtype=torch.bfloat16, device=device)
    one.normal_()
    other.normal_()
    return partial(torch.mm, one, other, out=out)


def measure(policy: QwenVLPolicy, group: Group, repeats: int, *, copied: int, multiplied: int) -> dict[str, Any]:
    """Everything but the names; ``copied`` bytes and matrices of size ``multiplied`` tell how fast the device is."""
    module, device = policy.module, policy.module.device
    learner = Learner(Sides(plain=module, policy=policy), group, ROWS_AT_ONCE)
    group_size, num_tokens = len(group.completions), len(group.completions[0].token_ids)
    never_end(policy)

    def generate(num_tokens: int) -> None:
        SharedPrefixRollout(policy, max_completion_tokens=num_tokens).generate([group.encoded], group_size, seed=0)

    seconds = medians(
        {
            "copy": copier(copied, device),
            "matrix product": multiplier(multiplied, device),
            "packed": learner.packed,
            "repeated": learner.repeated,
            "one token": partial(generate, 1),
            "all tokens": partial(generate, num_tokens),
        },
        repeats,
    )
    with announcing() as announce:
        announce("memory and gradients")
        packed_mb, packed = peak_extra_mb(learner.packed, device)
        repeated_mb, repeated = peak_extra_mb(learner.repeated, device)
        rollout_mb, _ = peak_extra_mb(partial(generate, num_tokens), device)
    flops = needed_flops(module, group)
    product_rate = 2 * multiplied**3 / seconds["matrix product"]
    peak = peak_rate(device) or product_rate
    copy_rate = 2 * copied / seconds["copy"]
    step_s = (seconds["all tokens"] - seconds["one token"]) / (num_tokens - 1)
    bound_s = needed_bytes(module, group, num_tokens) / copy_rate
    return {
        "mfu": sum(flops.values()) / seconds["packed"] / peak,
        "decode_bandwidth_frac": bound_s / step_s,
        "speedup": seconds["repeated"] / seconds["packed"],
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "weights_mb": sum(weight.nbytes for weight in module.parameters()) / 1e6,
        "prompt_tokens": len(group.encoded.input_ids),
        "group_size": group_size,
        "completion_tokens": num_tokens,
        "packed_s": seconds["packed"],
        "repeated_s": seconds["repeated"],
        "repeated_rows_at_once": ROWS_AT_ONCE,
        "packed_mb": packed_mb,
        "repeated_mb": repeated_mb,
        "grad_rel_err": relative_error(packed, repeated),  # of bfloat16: percents
        "flops": flops,
        "peak_tflops": peak / 1e12,
        "peak_is_measured": peak == product_rate,
        "product_tflops": product_rate / 1e12,
        "prefill_s": seconds["one token"],
        "decode_step_s": step_s,
        "decode_bound_s": bound_s,
        "decode_tokens_per_s": group_size / step_s,
        "copy_gb_per_s": copy_rate / 1e9,
        "rollout_mb": rollout_mb,
    }


def peak_rate(device: torch.device) -> float | None:
    """By the data sheet; None for a device that is not in the list."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tera * 1e12 for known, tera in PEAKS.items() if known in name), None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("a large model on one GPU", repeats=5)
    parser.add_argument("--size", choices=SHAPES, default="3b")
    args = parser.parse_args(argv)
    if not (torch.cuda.is_available() or args.quick):
        reason = "there is no CUDA device here"
        CONSOLE.print(f"{reason}: nothing is measured")
        finish({"gpu": None, "reason": reason}, args)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_policy(TINY if args.quick else SHAPES[args.size], device)
    sizes = (32, 2, 4) if args.quick else (1568, 8, 512)
    group = random_group(
        policy.processor, **dict(zip(("video_tokens", "group_size", "completion_tokens"), sizes, strict=True))
    )
    speed = {"copied": 2**20, "multiplied": 256} if args.quick else {"copied": 2**31, "multiplied": 8192}
    figures = measure(policy, group, args.repeats, **speed)
    show(
        f"{figures['parameters'] / 1e9:.1f} B parameters: {figures['group_size']} completions of "
        f"{figures['completion_tokens']} tokens after {figures['prompt_tokens']}",
        ("figure", "value"),
        [(name, f"{value:.4g}") for name, value in figures.items() if isinstance(value, float)],
    )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    finish({"gpu": gpu, "size": "tiny" if args.quick else args.size, **figures}, args)


if __name__ == "__main__":
    main()
