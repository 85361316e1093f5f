"""A process that decodes: ``python -m vidbridge.media.worker``, one request a line in, frames as plain bytes out.

A request is the JSON of ``to_request``. A reply is JSON after its length in four bytes, then, where it announces a
shape, the bytes of times_s as float64 and of the frames. Torch is not imported here, so that a new one is there soon.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Clip, Effect, ImageRef, Montage, Segment, VideoRef, Visual


def to_request(visual: Visual, frames: FrameBudget | None) -> dict[str, Any]:
    """Return the request as JSON can hold it; without a budget the reply tells how long and large the video is."""
    return {
        "kind": type(visual).__name__,
        "visual": asdict(visual),
        "frames": None if frames is None else asdict(frames),
    }


def from_request(request: dict[str, Any]) -> tuple[Visual, FrameBudget | None]:
    fields, frames = request["visual"], request["frames"]
    read: Visual
    if request["kind"] == "Montage":
        read = Montage(
            sources=tuple(VideoRef(**each) for each in fields["sources"]),
            segments=tuple(Segment(**each) for each in fields["segments"]),
            effects=tuple(Effect(**each) for each in fields["effects"]),
        )
    else:
        read = VideoRef(**fields) if request["kind"] == "VideoRef" else ImageRef(**fields)
    return read, None if frames is None else FrameBudget(**frames)


def describe(path: str) -> dict[str, Any]:
    """Return what the first frame and the headers say."""
    with VideoFile(path) as file:
        return {"duration_s": file.duration_s, "height": file.height, "width": file.width}


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], Clip | None]:
    """The head of the reply and what follows it."""
    try:
        visual, frames = from_request(request)
        if frames is None:
            return {"about": describe(visual.path)}, None
        clip = decode(visual, frames)
        return {"shape": clip.frames.shape}, clip
    except VideoError as error:
        return {"error": [error.path, error.reason, error.detail]}, None
    except MemoryError:
        return {"error": [_path(request), "memory", "needs more memory than a worker may have"]}, None


def _path(request: dict[str, Any]) -> str:
    fields = request["visual"]
    return fields["path"] if "path" in fields else fields["sources"][0]["path"]


def peak_mb() -> float:
    """The most memory this process ever held, in 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss counts what the starting process held, too
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    for line in requests:
        head, clip = answer(json.loads(line))
        head["peak_mb"] = peak_mb()
        text = json.dumps(head).encode()
        replies.write(len(text).to_bytes(4) + text)
        if clip is not None:
            replies.write(np.ascontiguousarray(clip.times_s, np.float64).data)
            replies.write(np.ascontiguousarray(clip.frames).data)
        replies.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]) * 2**20,) * 2)
    serve(sys.stdin.buffer, sys.stdout.buffer)
