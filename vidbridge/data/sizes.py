"""How large the rows of a task are for the model: some of them, read and encoded as in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.policy.processor import Processor
from vidbridge.tasks.base import Task, as_data_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSizes:
    """Of the rows of a task that were looked at, a number each."""

    name: str
    num_rows: int  # in all
    share: float  # of the samples that are trained on
    prompt_tokens: Sequence[int]
    video_tokens: Sequence[int]  # of them
    patches: Sequence[int]
    num_bytes: Sequence[int]  # of frames and patches


def look_at(task: Task, processor: Processor, *, num_rows: int, share: float) -> TaskSizes:
    """At ``num_rows`` rows, evenly spread; one that training could not use is a DataError here too."""
    tokens, of_video, patches, num_bytes = [], [], [], []
    for index in np.unique(np.linspace(0, len(task) - 1, num_rows).astype(int)).tolist():
        sample = task.sample(index)
        with as_data_errors(sample):
            prompt = task.prompt(sample)
            encoded = processor.encode(prompt)
        tokens.append(len(encoded.input_ids))
        of_video.append(int((encoded.input_ids == processor.config.video_token_id).sum()))
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
