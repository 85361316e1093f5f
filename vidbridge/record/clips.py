"""What the model saw, as small mp4s and PNGs in the run folder: made of the decoded frames, so that no file is opened
again.

A clip plays at the pace of its video, but no slower than two frames a second: sixteen frames of five minutes are a
slide show of eight seconds. ``times_s`` has the times that the frames stand for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from vidbridge.media.origins import Origins, origins
from vidbridge.media.write import encode_mp4, encode_png
from vidbridge.runtime import collectives
from vidbridge.types import Clip, Group, Sample

FOLDER = "clips"  # of a run
SLOWEST, FASTEST = 2, 60  # frames a second
CRF = 20
ROUNDED_S = 0.01  # more than what rounding to milliseconds adds up to


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenClip:
    """One clip of a prompt: its name in the run folder, the mp4, and of each frame its time and its origin.

    An image is a PNG, and has no times.
    """

    name: str
    content: bytes
    times_s: tuple[float, ...]
    origins: Origins

    def to_dict(self) -> dict[str, Any]:
        """``{"path": "clips/..mp4", "times_s": [0.25, ..], "sources": ["a.mp4"], "origins": [[0, 0.25], null, ..]}``"""
        return {
            "path": f"{FOLDER}/{self.name}",
            "times_s": [round(time_s, 3) for time_s in self.times_s],
            "sources": list(self.origins.sources),
            "origins": [origin and [origin[0], round(origin[1], 3)] for origin in self.origins.frames],
        }


def seen_clips(groups: Sequence[Group]) -> list[tuple[SeenClip, ...]]:
    """Return the clips of each group's prompt. Called by all ranks: each encodes those of the groups it worked on."""
    own: dict[int, tuple[SeenClip, ...]] = {}
    with collectives.fail_together():
        for index, group in enumerate(groups):
            if group.prompt.clips:  # a group of another rank is light
                clips = enumerate(group.prompt.clips)
                own[index] = tuple(seen_clip(group.sample, number, clip) for number, clip in clips)
    found = {index: clips for part in collectives.all_gather(own) for index, clips in part.items()}
    return [found.get(index, ()) for index in range(len(groups))]


def seen_clip(sample: Sample, number: int, clip: Clip) -> SeenClip:
    """The same frames have the same name: an item that is shown before and after training is one file."""
    fps = playing_fps(clip.times_s)  # one frame has some rate, too
    digest = hashlib.sha256(f"{clip.frames.shape} {fps}".encode())
    digest.update(np.ascontiguousarray(clip.frames).data)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", sample.uid)[-40:].strip("-") or "clip"
    return SeenClip(
        name=f"{readable}-{digest.hexdigest()[:12]}.{'png' if clip.is_image else 'mp4'}",
        content=encode_png(clip) if clip.is_image else encode_mp4(even(clip), fps=fps, crf=CRF),
        times_s=() if clip.is_image else tuple(map(float, clip.times_s)),
        origins=origins(sample, number, clip.times_s),
    )


def playing_fps(times_s: np.ndarray) -> Fraction:
    """
    >>> [str(playing_fps(np.arange(16) * step_s)) for step_s in (0.125, 0.3, 18.75)]
    ['8', '10/3', '2']
    """
    step_s = float(times_s[-1] - times_s[0]) / max(len(times_s) - 1, 1)
    return Fraction(min(max(1 / step_s, SLOWEST), FASTEST) if step_s > 0 else SLOWEST).limit_denominator(1000)


def even(clip: Clip) -> Clip:
    """Return the clip with an even number of rows and columns, the last one doubled: H.264 holds no other."""
    _, height, width, _ = clip.frames.shape
    edges = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    return replace(clip, frames=np.pad(clip.frames, edges, mode="edge"))


def write_clips(clips: Sequence[SeenClip], run_dir: Path) -> None:
    """Write the clips that are not there yet; each appears whole or not at all."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    for clip in clips:
        path = folder / clip.name
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_bytes(clip.content)
            partial.replace(path)


def is_image(clip: Mapping[str, Any]) -> bool:
    """Return whether ``clip``, as ``SeenClip.to_dict`` has it, is an image."""
    return not clip["times_s"]


def shown(clip: Mapping[str, Any]) -> Iterator[str]:
    """Say what is on show when, a stretch of frames at a time, of an image its name; ``clip`` as of ``to_dict``.

    >>> clip = {"times_s": [1, 3, 5, 7], "sources": ["a.mp4"], "origins": [[0, 31], [0, 33], None, [0, 7]]}
    >>> list(shown(clip))
    ['1-3 s: a.mp4 from 31 s', '5 s: dark', '7 s: a.mp4']
    """
    if is_image(clip):
        yield clip["sources"][0]
        return
    stretches: list[list[tuple[float, Any]]] = []
    for frame in zip(clip["times_s"], clip["origins"]):
        if stretches and _goes_on(stretches[-1][-1], frame):
            stretches[-1].append(frame)
        else:
            stretches.append([frame])
    for stretch in stretches:
        times_s, froms = zip(*stretch)
        if froms[0] is None:
            yield f"{_span(times_s)}: dark"
        else:
            source, from_s = froms[0]
            at = "" if abs(from_s - times_s[0]) < ROUNDED_S else f" from {from_s:g} s"
            yield f"{_span(times_s)}: {clip['sources'][source]}{at}"


def _goes_on(last: tuple[float, Any], frame: tuple[float, Any]) -> bool:
    """Return whether the same source goes on without a jump, or it is still dark."""
    (last_s, last_from), (time_s, origin) = last, frame
    if last_from is None or origin is None:
        return last_from is origin
    return last_from[0] == origin[0] and abs((origin[1] - last_from[1]) - (time_s - last_s)) < ROUNDED_S


def _span(times_s: Sequence[float]) -> str:
    first, last = times_s[0], times_s[-1]
    return f"{first:g} s" if first == last else f"{first:g}-{last:g} s"
