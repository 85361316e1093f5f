"""How long a prompt will be, without decoding its videos: enough to deal prompts to ranks evenly."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import av

from vidbridge.media.patches import smart_size
from vidbridge.policy.processor import Processor
from vidbridge.tasks.base import Task
from vidbridge.types import Sample, VideoRef

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"  # files that are one video and point to no other


def estimated_tokens(sample: Sample, task: Task, processor: Processor) -> float:
    """Tokens of the question and of the videos. What cannot be read counts as nothing: who decodes it will say so."""
    text = len(processor.tokenizer(task.ask(sample), add_special_tokens=False).input_ids)
    return text + sum(_video_tokens(video, processor) for video in sample.videos)


def _video_tokens(video: VideoRef, processor: Processor) -> float:
    seconds, height, width = header(video.path)
    end_s = seconds if video.end_s is None else min(video.end_s, seconds)
    if not (end_s > video.start_s and height and width):
        return 0.0
    frames, numbers = processor.frames, processor.numbers
    factor = numbers["patch_size"] * numbers["merge_size"]
    try:
        tall, wide = smart_size(
            height, width, factor=factor, min_pixels=frames.min_pixels, max_pixels=frames.max_pixels
        )
    except ValueError:
        return 0.0
    num_frames = len(frames.times(end_s - video.start_s))
    return math.ceil(num_frames / numbers["temporal_patch_size"]) * (tall // factor) * (wide // factor)


@lru_cache(maxsize=2**16)
def header(path: str) -> tuple[float, int, int]:
    """(seconds, height, width) as the file says; zeros where it does not, or is no ordinary file."""
    if not Path(path).is_file():
        return 0.0, 0, 0
    try:
        with av.open(path, options={"format_whitelist": _FORMATS}) as container:
            stream = container.streams.video[0]
            seconds = (container.duration or 0) / av.time_base
            return seconds, stream.height, stream.width
    except (av.FFmpegError, IndexError):
        return 0.0, 0, 0
