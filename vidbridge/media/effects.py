"""Effects: what may be done to the frames of an interval of a montage. Each is one function.

It takes the frames of the interval before they are read, and returns as many: in another order (``reverse``), or with
something to be done to their pictures (``mirror``). It does not change when they are shown: the rule is in montage.py.
A function of your own is named by its module, ``Effect(name="my_effects.blur")``.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Sequence

import numpy as np

from vidbridge.media.resize import letterboxed
from vidbridge.types import Effect

Look = Callable[[np.ndarray], np.ndarray]  # a picture [H, W, 3] uint8 to another one of that size


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFrame:
    """A frame before it is read: which source and which second of its file, and what is done to the picture."""

    source: int  # index
    time_s: float
    hidden: bool = False  # black, whatever the source shows
    looks: tuple[Look, ...] = ()  # one after another

    def with_look(self, look: Look) -> PlannedFrame:
        return replace(self, looks=(*self.looks, look))


Frames = Sequence[PlannedFrame]


def dark(frames: Frames) -> Frames:
    return [replace(frame, hidden=True, looks=()) for frame in frames]


def reverse(frames: Frames) -> Frames:
    return frames[::-1]


def shuffle(frames: Frames, *, seed: int) -> Frames:
    """ValueError for a single frame, which has no other order."""
    if len(frames) < 2:
        raise ValueError("shuffle: a single frame lies in the interval")
    rng = np.random.default_rng(seed)
    order = list(range(len(frames)))
    while order == sorted(order):
        order = rng.permutation(len(frames)).tolist()
    return [frames[index] for index in order]


def mirror(frames: Frames) -> Frames:
    """Left is right."""
    return [frame.with_look(np.fliplr) for frame in frames]


def rotate(frames: Frames, *, degrees: int = 180) -> Frames:
    """Turn counterclockwise by 90, 180 or 270 degrees; what then has another shape is framed in black."""
    if degrees not in (90, 180, 270):
        raise ValueError(f"rotate: degrees must be 90, 180 or 270, got {degrees}")
    return [
        frame.with_look(lambda pixels: letterboxed(np.rot90(pixels, degrees // 90), pixels.shape[:2]))
        for frame in frames
    ]


def crop(frames: Frames, *, left: float, top: float, right: float, bottom: float) -> Frames:
    """Show a part of the picture as large as it fits; its edges are fractions of the width and the height."""
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"crop needs 0 <= left < right <= 1, and so top and bottom, got {left, top, right, bottom}")

    def look(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        rows = slice(int(top * height), math.ceil(bottom * height))
        columns = slice(int(left * width), math.ceil(right * width))
        return letterboxed(pixels[rows, columns], (height, width))

    return [frame.with_look(look) for frame in frames]


EFFECTS: Mapping[str, Callable[..., Frames]] = {
    each.__name__: each for each in (dark, reverse, shuffle, mirror, rotate, crop)
}


def function_of(effect: Effect) -> Callable[[Frames], Frames]:
    """Return what the effect does to the frames of its interval; ValueError for a name or a parameter that is wrong."""
    function = _named(effect.name)
    try:
        inspect.signature(function).bind((), **effect.params)
    except TypeError as error:
        raise ValueError(f"effect {effect.name!r}: {error}") from error

    def changed(frames: Frames) -> Frames:
        found = list(function(frames, **effect.params))
        if len(found) != len(frames):
            raise ValueError(f"effect {effect.name!r} made {len(found)} frames of {len(frames)}: it must keep them all")
        return found

    return changed


def file_of(effect: Effect) -> str | None:
    """Return the file of an effect from outside of the package, which may be changed any time."""
    return None if effect.name in EFFECTS else inspect.getsourcefile(_named(effect.name))


def _named(name: str) -> Callable[..., Frames]:
    if name in EFFECTS:
        return EFFECTS[name]
    try:
        function: Callable[..., Frames] = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(sorted(EFFECTS))
        raise ValueError(
            f"there is no effect {name!r} ({error}): {known}, or the dotted name of a function of yours"
        ) from error
    return function
