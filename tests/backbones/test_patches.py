"""Patches against the Hugging Face image processor, and the arithmetic of sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vidbridge.backbones.patches import patchify, smart_size

MEAN, STD = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]


def cut(frames, *, patch_size=4, min_pixels=64, max_pixels=10_000, mean=MEAN, std=STD):
    patches, grid = patchify(
        frames,
        patch_size=patch_size,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=mean,
        image_std=std,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    return torch.from_numpy(patches), grid


def hugging_face(frame, *, patch_size=4, min_pixels=64, max_pixels=10_000):
    """Patches and grid of one still frame, which the image processor shows twice in a temporal patch."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        image_mean=MEAN,
        image_std=STD,
    )
    outputs = processor([frame], return_tensors="pt", input_data_format="channels_last")
    return outputs["pixel_values"], tuple(outputs["image_grid_thw"][0].tolist())


def smooth_frame(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(rows / 9 + columns / 7 + phase) for phase in (0, 1, 2)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@given(blocks=st.tuples(st.integers(1, 6), st.integers(1, 6)), patch_size=st.sampled_from([2, 4, 7]))
@settings(max_examples=25, deadline=None)
def test_equal_to_the_image_processor_when_the_size_fits(blocks, patch_size):
    height, width = (2 * patch_size * count for count in blocks)
    budget = {"patch_size": patch_size, "min_pixels": 1, "max_pixels": 1_000_000}
    frame = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches, grid = cut(np.stack([frame, frame]), **budget)
    expected, expected_grid = hugging_face(frame, **budget)
    assert grid == expected_grid
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape, budget", [((50, 70), (64, 2_000)), ((20, 30), (4_000, 9_000)), ((45, 61), (1, 9_000))])
def test_resizing_is_within_two_grey_levels_of_the_image_processor(shape, budget):
    frame = smooth_frame(*shape)
    patches, grid = cut(np.stack([frame, frame]), min_pixels=budget[0], max_pixels=budget[1])
    expected, expected_grid = hugging_face(frame, min_pixels=budget[0], max_pixels=budget[1])
    assert grid == expected_grid
    # Both round after each of two passes; Pillow may run the vertical one first.
    assert (patches - expected).abs().max() <= 2 / 255 / min(STD) + 1e-5


def test_the_order_of_numbers_in_a_patch():
    """One block of 2 x 2 patches of 2 x 2 pixels; pixel value = 100 * frame + 10 * row + column, channels + 0, 1, 2."""
    rows, columns = np.mgrid[0:4, 0:4]
    frames = np.stack([np.stack([100 * t + 10 * rows + columns + c for c in range(3)], axis=-1) for t in range(2)])
    patches, grid = cut(
        frames.astype(np.uint8), patch_size=2, min_pixels=1, mean=[0.0] * 3, std=[1 / 255] * 3
    )
    assert grid == (1, 2, 2)
    patch = patches[1].round().long().tolist()  # the patch at rows 0-1, columns 2-3
    assert patch[:8] == [2, 3, 12, 13, 102, 103, 112, 113]  # channel 0: frame 0, then frame 1
    assert patch[8:16] == [3, 4, 13, 14, 103, 104, 113, 114]  # channel 1
    assert patches[2].round().long().tolist()[:4] == [20, 21, 30, 31]  # next in the block: rows 2-3, columns 0-1


def test_an_odd_clip_repeats_its_last_frame():
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    patches, grid = cut(frames)
    assert grid == (2, 2, 2)
    assert torch.equal(patches, cut(np.concatenate([frames, frames[-1:]]))[0])


def test_each_temporal_patch_stands_alone():
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 16, 3), dtype=np.uint8)
    patches, _ = cut(frames)
    assert torch.equal(patches, torch.cat([cut(frames[:2])[0], cut(frames[2:])[0]]))


@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    factor=st.sampled_from([8, 16, 28]),
    min_pixels=st.integers(1, 100_000),
    spare=st.integers(1, 100_000),
)
def test_sizes_are_those_of_the_library(height, width, factor, min_pixels, spare):
    max_pixels = min_pixels + spare
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="too long and thin"):
            smart_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
        return
    expected = smart_resize(height, width, factor, min_pixels, max_pixels)
    assert smart_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels) == expected


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_what_is_not_a_clip_is_refused(frames):
    with pytest.raises(ValueError, match=r"must be uint8 of shape \[T, H, W, 3\]"):
        cut(frames)
