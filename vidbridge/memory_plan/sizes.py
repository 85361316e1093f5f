"""How large the rows of a task are for the model: some of them, read and encoded as in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.data.loader import Loader
from vidbridge.tasks.rows import TaskRows


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSizes:
    """Sizes of some rows of a task, a number each."""

    name: str
    num_rows: int  # in all
    share: float  # of the samples that are trained on
    prompt_tokens: Sequence[int]
    video_tokens: Sequence[int]  # of them
    patches: Sequence[int]
    num_bytes: Sequence[int]  # of frames and patches


def look_at(task: TaskRows, loader: Loader, *, num_rows: int, share: float) -> TaskSizes:
    """Return the sizes of ``num_rows`` rows, evenly spread; what training cannot use is replaced as it is there."""
    tokens, of_video, patches, num_bytes = [], [], [], []
    rows = np.unique(np.linspace(0, len(task) - 1, num_rows).astype(int)).tolist()
    for each in loader.load({row: task.sample(row) for row in rows}).values():
        prompt, encoded = each.prompt, each.encoded
        tokens.append(len(encoded.input_ids))
        of_video.append(int(loader.processor.is_vision(encoded.input_ids).sum()))
        patches.append(len(encoded.pixel_values))
        num_bytes.append(encoded.pixel_values.nbytes + sum(clip.frames.nbytes for clip in prompt.clips))
    return TaskSizes(
        name=task.name,
        num_rows=len(task),
        share=share,
        prompt_tokens=tokens,
        video_tokens=of_video,
        patches=patches,
        num_bytes=num_bytes,
    )
