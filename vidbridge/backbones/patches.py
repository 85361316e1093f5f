"""From frames to the patch vectors that the vision towers of Qwen2-VL and its successors read, and their embedding.

The same numbers as the Hugging Face processors of the family (resize, rescale, normalise, patch order), written out in
torch because their video processor needs torchvision, which does not load beside every torch build.
"""

from __future__ import annotations

from types import MethodType
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vidbridge.media.frame_budget import smart_size


def patchify(
    frames: np.ndarray,
    *,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    min_pixels: int,
    max_pixels: int,
    resizes: bool = True,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut a clip [T, H, W, 3] uint8 into patch vectors [S, D] float32 and their grid (t, h, w), S = t * h * w.

    D = 3 * temporal_patch_size * patch_size**2, ordered channel, time, row, column. Patches run through time, then
    through merge_size x merge_size blocks row by row, so that the tokens merged later lie next to each other.
    ``min_pixels`` and ``max_pixels`` bound the area of one frame, unless the frames come in their size already and
    are not to be resized. The last frame is repeated to fill the last temporal patch.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a clip must be uint8 of shape [T, H, W, 3] with T >= 1, got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    factor = patch_size * merge_size
    size = height, width
    if resizes:
        size = smart_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    elif height % factor or width % factor:
        raise ValueError(f"frames of {width} x {height} pixels were not read in multiples of {factor}")
    if size != (height, width):
        # On uint8, as torchvision does it for the video processor: rounded to whole levels before normalising.
        planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        frames = F.interpolate(planes, size=size, mode="bicubic", antialias=True).permute(0, 2, 3, 1).numpy()
    # In numpy: this runs beside a training step, and a second team of torch threads would slow both.
    video = frames.astype(np.float32)
    video /= 255
    video -= np.array(image_mean, np.float32)
    video /= np.array(image_std, np.float32)
    fill = -len(video) % temporal_patch_size
    video = np.concatenate([video, video[-1:].repeat(fill, axis=0)])

    grid_t, grid_h, grid_w = len(video) // temporal_patch_size, size[0] // patch_size, size[1] // patch_size
    blocks_h, blocks_w = grid_h // merge_size, grid_w // merge_size
    patches = video.reshape(
        grid_t, temporal_patch_size, blocks_h, merge_size, patch_size, blocks_w, merge_size, patch_size, 3
    ).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return patches.reshape(grid_t * grid_h * grid_w, -1), (grid_t, grid_h, grid_w)


def embed_patches_by_matmul(convolution: nn.Module) -> None:
    """Compute the vision tower's patch embedding as the matrix product it is.

    Its Conv3d has stride = kernel = one patch, which is slow on CPUs and in some CUDA builds. Only this module's call
    is replaced: weights, their names and the class stay as they are.
    """
    assert isinstance(convolution, nn.Conv3d) and convolution.kernel_size == convolution.stride

    def forward(self: nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)  # [S, embedding]

    convolution.forward = MethodType(forward, convolution)  # type: ignore[method-assign]
