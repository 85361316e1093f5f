import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.media.cuts import alternate, cut


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


@pytest.mark.parametrize("piece_s", [(2.0, 1.5), (0.0, 1.0)])
def test_senseless_pieces_are_refused(piece_s):
    with pytest.raises(ValueError, match="piece_s"):
        cut(3.0, piece_s, np.random.default_rng(0))
