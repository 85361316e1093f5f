"""Rotary positions with three axes (mRoPE: one position each for time, height and width), as models were trained with.

The rule is that of transformers 4.49.0, the first release with Qwen2.5-VL; vLLM follows it too. Later releases of
transformers changed it: from 5.3 on the text after a video begins inside the time axis of the video, and some releases
cut fractions of seconds. So the installed library must not be asked for positions.
"""

from __future__ import annotations

from typing import Collection, Sequence

import torch


def mrope_positions(
    input_ids: torch.Tensor,
    grid_thw: torch.Tensor,
    seconds_per_grid: Sequence[float],
    *,
    vision_token_ids: Collection[int],
    merge_size: int,
    tokens_per_second: float,
) -> tuple[torch.Tensor, int]:
    """Return positions [3, L] int64 and the rope delta: the first completion token's position is L + delta.

    input_ids [L] holds, for each row (t, h, w) of grid_thw [V, 3], one run of t * h * w / merge_size**2 tokens of
    ``vision_token_ids``. ``seconds_per_grid`` [V] is the time between two grids (temporal patches) of each video; an
    image is a video of one grid.

    - A text token is one further than the largest position before it, on all three axes.
    - A video begins one further than the largest position before it. From there, token (i, y, x) lies
      floor(i * seconds_per_grid * tokens_per_second) further in time, y in height and x in width.
    """
    pieces: list[torch.Tensor] = []
    read = start = 0  # tokens done; one further than the largest position so far

    def add_text(end: int) -> None:
        nonlocal read, start
        pieces.append((start + torch.arange(end - read)).expand(3, -1))
        start, read = start + end - read, end

    is_vision = [id in vision_token_ids for id in input_ids.tolist()]
    for (grid_t, grid_h, grid_w), seconds in zip(grid_thw.tolist(), seconds_per_grid, strict=True):
        add_text(is_vision.index(True, read))
        # multiplied one after the other in 32 bits, as the model's own code does: other roundings, other integers
        time = (torch.arange(grid_t) * torch.tensor(seconds, dtype=torch.float32) * tokens_per_second).long()
        height, width = torch.arange(grid_h // merge_size), torch.arange(grid_w // merge_size)
        pieces.append(start + torch.stack(torch.meshgrid(time, height, width, indexing="ij")).flatten(1))
        start, read = int(pieces[-1].max()) + 1, read + pieces[-1].shape[1]
    add_text(len(is_vision))
    return torch.cat(pieces, dim=1), start - len(is_vision)
