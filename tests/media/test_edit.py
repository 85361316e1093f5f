import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.media.edit import Piece, alternate, blackout, cut, interleave
from vidbridge.types import Clip


def counting_clip(num_frames, first=1, fps=8):
    frames = np.arange(first, first + num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return Clip(frames=frames, times_s=np.arange(num_frames) / fps)


def test_blackout_hides_exactly_the_interval():
    clip = counting_clip(32)
    dark = blackout(clip, 1.0, 2.0)
    # frames 8..15 start within [1, 2) s
    assert (dark.frames[8:16] == 0).all()
    assert (dark.frames[:8] == clip.frames[:8]).all() and (dark.frames[16:] == clip.frames[16:]).all()
    assert clip.frames[8].all(), "the given clip stays as it was"
    with pytest.raises(ValueError, match="nothing would be hidden"):
        blackout(clip, 4.0, 5.0)


@given(duration_s=st.floats(0.3, 60), seed=st.integers(0, 2**32 - 1))
def test_cut_covers_the_source_in_pieces_of_the_asked_length(duration_s, seed):
    pieces = cut(duration_s, (1.5, 2.0), np.random.default_rng(seed))
    assert pieces[0][0] == 0 and pieces[-1][1] == duration_s
    assert all(one[1] == two[0] for one, two in zip(pieces, pieces[1:]))
    # 3 s and more can always be cut so, except between 2 x 2 and 3 x 1.5 s
    if duration_s >= 4.5 or 3.0 <= duration_s <= 4.0 or 1.5 <= duration_s <= 2.0:
        assert all(1.5 - 1e-9 <= end_s - start_s <= 2.0 + 1e-9 for start_s, end_s in pieces)


def test_sources_take_turns_and_the_longer_one_closes():
    pieces = alternate((3.0, 6.0), (1.5, 1.5), np.random.default_rng(0))
    assert [piece.source for piece in pieces] == [0, 1, 0, 1, 1, 1]


@given(seed=st.integers(0, 2**32 - 1), num=st.tuples(st.integers(24, 40), st.integers(24, 40)))
def test_interleaving_loses_no_frame_and_repeats_none(seed, num):
    clips = counting_clip(num[0], first=1), counting_clip(num[1], first=101)
    durations_s = num[0] / 8, num[1] / 8
    mixed = interleave(clips, alternate(durations_s, (1.5, 2.0), np.random.default_rng(seed)))
    values = mixed.frames[:, 0, 0, 0].tolist()
    assert [v for v in values if v < 100] == list(range(1, 1 + num[0]))
    assert [v for v in values if v > 100] == list(range(101, 101 + num[1]))
    assert mixed.times_s == pytest.approx(np.arange(sum(num)) / 8)


def test_interleave_by_hand():
    pieces = [
        Piece(source=1, start_s=0.0, end_s=0.25),
        Piece(source=0, start_s=0.0, end_s=0.5),
        Piece(source=1, start_s=0.25, end_s=0.5),
    ]
    mixed = interleave((counting_clip(4), counting_clip(4, first=11)), pieces)
    assert mixed.frames[:, 0, 0, 0].tolist() == [11, 12, 1, 2, 3, 4, 13, 14]


def test_interleave_refuses_two_sizes_and_senseless_pieces():
    small = Clip(frames=np.zeros((4, 4, 4, 3), np.uint8), times_s=np.arange(4) / 8)
    with pytest.raises(ValueError, match="differ in size"):
        interleave((counting_clip(4), small), [])
    with pytest.raises(ValueError, match="piece_s"):
        cut(3.0, (2.0, 1.5), np.random.default_rng(0))
