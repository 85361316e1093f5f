"""Where each frame is from: of what is edited while it is read, and of a file that was cut before."""

import numpy as np
import pytest

from vidbridge.media.origins import origins
from vidbridge.types import Montage, Sample, VideoRef

TIMES = np.array([0.5, 1.5, 2.5, 3.5])


def of(video, **meta):
    return origins(Sample(uid="a", task="qa", question="", answer="", videos=(video,), meta=meta), 0, TIMES)


def part(path, start_s, end_s):
    return VideoRef(path=path, start_s=start_s, end_s=end_s)


def test_a_plain_video_counts_from_where_its_part_starts():
    found = of(VideoRef(path="/data/a.mkv", start_s=10.0))
    assert found.sources == ("a.mkv",) and found.frames == ((0, 10.5), (0, 11.5), (0, 12.5), (0, 13.5))


def test_two_videos_in_turn_and_the_dark():
    shown = Montage(parts=(part("x/a.mp4", 5, 6), part("b.mov", 0, 2), part("x/a.mp4", 6, 7)), dark_s=(1.5, 2.0))
    found = of(shown)
    # 0.5 in the first part; 1.5 is dark; 2.5 is 1.5 s into the second; 3.5 half a second into the third
    assert found.sources == ("x/a.mp4", "b.mov") and found.frames == ((0, 5.5), None, (1, 1.5), (0, 6.5))


def test_events_of_one_video_in_another_order():
    found = of(Montage(parts=(part("a.mp4", 2, 4), part("a.mp4", 0, 2))))
    assert found.sources == ("a.mp4",) and found.frames == ((0, 2.5), (0, 3.5), (0, 0.5), (0, 1.5))


def test_of_a_file_cut_before_the_row_tells():
    cut = of(VideoRef(path="cut.mp4"), pieces=[[1, 0.0, 1.0], [0, 0.0, 1.0], [1, 1.0, 2.0]], dark=[0.0, 1.0])
    assert cut.sources == ("video 2", "video 1")  # as they are shown
    assert cut.frames == (None, (1, 0.5), (0, 1.5), (0, 2.5))  # the file goes on after its last piece


@pytest.mark.parametrize("value", [True, "night", [1, 2, 3, 4], [[None, 1, 2]], [["a", "b"]], [float("nan"), 1], {}])
def test_other_meanings_of_these_words_are_let_be(value):
    assert of(VideoRef(path="a.mp4"), pieces=value, dark=value) == of(VideoRef(path="a.mp4"))
