"""The one renderer of montages: what is on show when, and the frames.

Played time. The times of a clip (``Clip.times_s``, which a model may be told) are seconds of watching it: from 0 where
it begins, at equal steps, whatever they show. The rule:

- A clip is as long as its segments one after another; a segment plays for (end_s - start_s) / speed seconds. A span
  is left out by a gap between two segments, slow motion is a segment with a speed below 1.
- An effect changes what the frames of an interval show, not when: a clip that is reversed, shuffled, mirrored or dark
  has the times that it had. A frame at time t is in the interval if start_s <= t < end_s. Effects come in their order.
- A segment that goes on after the end of its file ends there, and later segments begin so much earlier; effects stay.

``in_files`` cuts segments at the ends of their files, ``planned`` says what each frame shows.
"""

from __future__ import annotations

import math
from typing import Callable, Iterable, Iterator, Mapping, Protocol, Sequence

import numpy as np

from vidbridge.errors import VideoError
from vidbridge.media.effects import PlannedFrame, function_of
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.resize import letterboxed
from vidbridge.types import Clip, Effect, Montage, Segment

Fit = Callable[[np.ndarray, tuple[int, int]], np.ndarray]  # a picture to (height, width)


class FrameSource(Protocol):
    """What ``render`` reads frames from, as VideoFile; ``frames_at`` takes rising times and yields [H, W, 3] uint8."""

    duration_s: float
    height: int
    width: int

    def frames_at(self, times_s: Iterable[float]) -> Iterator[np.ndarray]: ...


def render(
    montage: Montage, sources: Mapping[int, FrameSource], frames: FrameBudget, *, fit: Fit = letterboxed
) -> Clip:
    """Return a Clip of the montage at the times of the budget; ``sources`` has those that it shows, by their index.

    The canvas has the shape of what is shown first; other shapes are framed in black. VideoError when a file ends
    before a segment of it begins; ValueError for an effect that is wrong or has no frame, and for bad frame sizes.
    """
    segments = in_files(montage, {index: source.duration_s for index, source in sources.items()})
    for missing in (each for each in in_files(montage) if each.source not in {segment.source for segment in segments}):
        detail = f"is {sources[missing.source].duration_s:.2f} s long, it is shown from {missing.start_s:.2f} s on"
        raise VideoError(montage.sources[missing.source].path, "out_of_range", detail)
    times_s = frames.times(sum(segment.length_s for segment in segments))
    for effect in montage.effects:
        if not len(times_s[interval(effect, times_s)]):
            end = "the end" if effect.end_s is None else f"{effect.end_s} s"
            raise ValueError(f"no frame between {effect.start_s} s and {end}: {effect.name} would change nothing")
    plan = planned(segments, montage.effects, times_s)
    first = sources[segments[0].source]
    size = frames.size(first.height, first.width, len(times_s))
    pictures: list[np.ndarray] = [np.empty(0)] * len(plan)
    for index, source in sources.items():
        rising = sorted((n for n, frame in enumerate(plan) if frame.source == index), key=lambda n: plan[n].time_s)
        for n, pixels in zip(rising, source.frames_at(plan[n].time_s for n in rising)):
            pictures[n] = looked(plan[n], fit(pixels, size))
    return Clip(frames=np.stack(pictures), times_s=times_s)


def planned(segments: Sequence[Segment], effects: Sequence[Effect], times_s: np.ndarray) -> list[PlannedFrame]:
    """Return a PlannedFrame for each of the rising times: source, second in its file, and what effects do to it.

    ``segments`` are those of ``in_files``. Times after the end go on with the last segment.

    >>> halves = [Segment(source=0, start_s=0.0, end_s=2.0), Segment(source=1, start_s=5.0, end_s=6.0, speed=0.5)]
    >>> [(frame.source, frame.time_s) for frame in planned(halves, (), np.array([0.5, 2.5, 3.5]))]
    [(0, 0.5), (1, 5.25), (1, 5.75)]
    """
    starts = np.concatenate([[0.0], np.cumsum([segment.length_s for segment in segments])[:-1]])
    plan = []
    for index, time_s in zip(np.searchsorted(starts, times_s, side="right") - 1, times_s):
        on_show = segments[index]
        into_s = float(time_s - starts[index]) * on_show.speed
        plan.append(PlannedFrame(source=on_show.source, time_s=on_show.start_s + into_s))
    for effect in effects:
        inside = interval(effect, times_s)
        if plan[inside]:
            plan[inside] = function_of(effect)(plan[inside])
    return plan


def in_files(montage: Montage, durations_s: Mapping[int, float] | None = None) -> list[Segment]:
    """Return the segments in seconds of their files, cut at the end of the file; one that starts after it is left out.

    ``durations_s`` is by index of the source; None: no file ends. ``end_s`` of a source counts without segments alone.
    """
    first = montage.sources[0]
    wanted = [(0, first.start_s, math.inf if first.end_s is None else first.end_s, 1.0)]
    if montage.segments:
        offsets_s = [montage.sources[each.source].start_s for each in montage.segments]
        wanted = [
            (each.source, offset_s + each.start_s, offset_s + each.end_s, each.speed)
            for each, offset_s in zip(montage.segments, offsets_s)
        ]
    found = []
    for source, start_s, end_s, speed in wanted:
        end_s = end_s if durations_s is None else min(end_s, durations_s[source])
        if durations_s is None or start_s < end_s:
            found.append(Segment(source=source, start_s=start_s, end_s=end_s, speed=speed))
    return found


def interval(effect: Effect, times_s: np.ndarray) -> slice:
    """Return the slice of ``times_s``, which rise, with start_s <= t < end_s."""
    low, high = np.searchsorted(times_s, [effect.start_s, math.inf if effect.end_s is None else effect.end_s])
    return slice(int(low), int(high))


def looked(frame: PlannedFrame, pixels: np.ndarray) -> np.ndarray:
    """Return the picture with all that is done to it; ValueError where that changes its shape or its type."""
    shape = pixels.shape
    # a copy for looks that draw into the picture, which other frames may show too
    pixels = np.zeros_like(pixels) if frame.hidden else pixels.copy() if frame.looks else pixels
    for look in frame.looks:
        pixels = look(pixels)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"an effect made {pixels.shape} {pixels.dtype} of a picture that is {shape} uint8")
    return pixels
