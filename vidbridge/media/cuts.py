"""Draw where a montage is cut: one video into pieces, two videos in turn."""

from __future__ import annotations

import itertools
import math

import numpy as np

from vidbridge.types import Segment


def cut(duration_s: float, piece_s: tuple[float, float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return (start, end) of consecutive pieces of ``piece_s`` = (shortest, longest) seconds that cover the duration.

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


def alternate(
    durations_s: tuple[float, float], piece_s: tuple[float, float], rng: np.random.Generator
) -> list[Segment]:
    """Return segments of two sources in turn, A B A B .., until both are used up; the rest of the longer one closes."""
    cuts = [cut(duration_s, piece_s, rng) for duration_s in durations_s]
    turns = itertools.zip_longest(*cuts)
    return [
        Segment(source=source, start_s=piece[0], end_s=piece[1])
        for turn in turns
        for source, piece in enumerate(turn)
        if piece is not None
    ]
