"""How long a prompt will be, without decoding its videos: enough to deal prompts to ranks evenly."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import av

from vidbridge.errors import VideoError
from vidbridge.media.container import open_container
from vidbridge.media.image_file import image_size
from vidbridge.media.montage import in_files
from vidbridge.media.reader import VideoReader
from vidbridge.policy.processor import Processor
from vidbridge.tasks.rows import TaskRows
from vidbridge.text import prompts
from vidbridge.types import ImageRef, Montage, Sample, VideoRef, Visual


def estimated_tokens(sample: Sample, task: TaskRows, processor: Processor) -> float:
    """Return the tokens of the texts, images and videos; what cannot be read counts as nothing."""
    texts = prompts.texts_in(task.messages(sample))
    text = sum(len(processor.chat_tokens.text_ids(each)) for each in texts)
    return text + sum(_clip_tokens(visual, task, processor) for visual in sample.shown)


def _clip_tokens(visual: Visual, task: TaskRows, processor: Processor) -> float:
    try:
        if isinstance(task.read, VideoReader):
            visual = task.read.confined(visual)
        sized, numbers = processor.sized().frames, processor.numbers
        if isinstance(visual, ImageRef):
            num_frames, (height, width) = 1, image_size(visual.path)
        else:
            seconds, (height, width) = _shown(visual)
            if not (seconds > 0 and height and width):
                return 0.0
            num_frames = len(sized.times(seconds))
        tall, wide = sized.size(height, width, num_frames)
    except (VideoError, ValueError):
        return 0.0
    factor = numbers["patch_size"] * numbers["merge_size"]
    return math.ceil(num_frames / numbers["temporal_patch_size"]) * (tall // factor) * (wide // factor)


def _shown(video: VideoRef | Montage) -> tuple[float, tuple[int, int]]:
    """Return how long it plays, and the size of its frames, which in a montage is that of what is shown first."""
    seconds, *size = header(video.path)
    if isinstance(video, Montage) and video.segments:
        return sum(segment.length_s for segment in in_files(video)), (size[0], size[1])
    source = video.sources[0]
    end_s = seconds if source.end_s is None else min(source.end_s, seconds)
    return end_s - source.start_s, (size[0], size[1])


@lru_cache(maxsize=2**16)
def header(path: str) -> tuple[float, int, int]:
    """Return (seconds, height, width) as the file says; zeros where it does not, or is no ordinary file."""
    if not Path(path).is_file():
        return 0.0, 0, 0
    try:
        with open_container(path) as container:
            stream = container.streams.video[0]
            seconds = (container.duration or 0) / av.time_base
            return seconds, stream.height, stream.width
    except (VideoError, av.FFmpegError, IndexError):
        return 0.0, 0, 0
