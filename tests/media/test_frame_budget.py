import pytest

from vidbridge.media.frame_budget import FrameBudget


def budget(**changes):
    return FrameBudget(**{"fps": 2.0, "max_frames": 8, "min_pixels": 4, "max_pixels": 4, **changes})


def test_times_are_the_middles_of_equal_slices():
    assert budget().times(2.0).tolist() == [0.25, 0.75, 1.25, 1.75]
    # 10 s at 2 fps would be 20 frames; 8 allowed: slices of 1.25 s
    assert budget().times(10.0)[:2].tolist() == [0.625, 1.875]
    # no rate: always max_frames
    assert budget(fps=None, max_frames=2).times(10.0).tolist() == [2.5, 7.5]
    # shorter than a slice: one frame in the middle
    assert budget().times(0.1).tolist() == pytest.approx([0.05])


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"fps": 0.0}, "fps"), ({"max_frames": 0}, "max_frames"), ({"min_pixels": 5}, "min_pixels <= max_pixels")],
)
def test_senseless_budgets_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        budget(**changes)
