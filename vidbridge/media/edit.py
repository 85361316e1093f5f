"""The two edits that make proxy tasks out of plain clips: darken an interval, interleave two clips."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from vidbridge.types import Clip


def blackout(clip: Clip, start_s: float, end_s: float) -> Clip:
    """The clip with every frame in [start_s, end_s) black; ValueError when no frame falls inside."""
    dark = (clip.times_s >= start_s) & (clip.times_s < end_s)
    if not dark.any():
        raise ValueError(f"no frame between {start_s} s and {end_s} s, nothing would be hidden")
    frames = clip.frames.copy()
    frames[dark] = 0
    return Clip(frames=frames, times_s=clip.times_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one source inside an interleaved clip."""

    source: int  # from 0
    start_s: float  # in the source
    end_s: float


def cut(duration_s: float, piece_s: tuple[float, float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """(start, end) of consecutive pieces of ``piece_s`` = (shortest, longest) seconds that cover the duration.

    A duration that no number of such pieces adds up to (2.5 s in pieces of 1.5 to 2 s) is cut into equal
    pieces, of a length as near as can be.
    """
    shortest, longest = piece_s
    if not 0 < shortest <= longest:
        raise ValueError(f"piece_s must be 0 < shortest <= longest, got {piece_s}")
    fewest, most = math.ceil(duration_s / longest), math.floor(duration_s / shortest)
    if fewest > most:
        edges = np.linspace(0, duration_s, max(most, 1) + 1)
        return [(float(start_s), float(end_s)) for start_s, end_s in zip(edges, edges[1:])]
    pieces = []
    start_s = 0.0
    for left in range(int(rng.integers(fewest, most + 1)) - 1, -1, -1):
        # what remains must still be a possible length for the pieces left
        rest_s = duration_s - start_s
        end_s = start_s + rng.uniform(max(shortest, rest_s - left * longest), min(longest, rest_s - left * shortest))
        pieces.append((start_s, end_s if left else duration_s))
        start_s = end_s
    return pieces


def alternate(durations_s: tuple[float, float], piece_s: tuple[float, float], rng: np.random.Generator) -> list[Piece]:
    """Pieces of two sources in turn, A B A B .., until both are used up; what is left of the longer one closes."""
    cuts = [cut(duration_s, piece_s, rng) for duration_s in durations_s]
    turns = itertools.zip_longest(*cuts)
    return [
        Piece(source=source, start_s=piece[0], end_s=piece[1])
        for turn in turns
        for source, piece in enumerate(turn)
        if piece is not None
    ]


def interleave(clips: Sequence[Clip], pieces: Sequence[Piece]) -> Clip:
    """The pieces of equally large clips of the same frame rate, one after another.

    A frame belongs to the piece that holds its time, so no frame is lost or shown twice when the
    pieces cover both sources.
    """
    if len(sizes := {clip.frames.shape[1:3] for clip in clips}) > 1:
        raise ValueError(f"clips differ in size: {' and '.join(map(str, sorted(sizes)))}")
    step_s = float(clips[0].times_s[1] - clips[0].times_s[0])
    parts = []
    for piece in pieces:
        clip = clips[piece.source]
        parts.append(clip.frames[(clip.times_s >= piece.start_s) & (clip.times_s < piece.end_s)])
    frames = np.concatenate(parts)
    return Clip(frames=frames, times_s=np.arange(len(frames)) * step_s)
