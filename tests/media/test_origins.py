"""Where each frame is from: of what is edited while it is read, and of a file that was cut before."""

import numpy as np
import pytest

from tests.media.videos import dark, in_turn
from vidbridge.media.origins import origins
from vidbridge.types import Effect, Montage, Sample, Segment, VideoRef

TIMES = np.array([0.5, 1.5, 2.5, 3.5])


def of(video, **meta):
    return origins(Sample(uid="a", task="qa", question="", answer="", videos=(video,), meta=meta), 0, TIMES)


def part(path, start_s, end_s):
    return VideoRef(path=path, start_s=start_s, end_s=end_s)


def test_a_plain_video_counts_from_where_its_part_starts():
    found = of(VideoRef(path="/data/a.mkv", start_s=10.0))
    assert found.sources == ("a.mkv",) and found.frames == ((0, 10.5), (0, 11.5), (0, 12.5), (0, 13.5))


def test_two_videos_in_turn_and_the_dark():
    parts = (part("x/a.mp4", 5, 6), part("b.mov", 0, 2), part("x/a.mp4", 6, 7))
    shown = in_turn(*parts, effects=[dark(1.5, 2.0)])
    found = of(shown)
    # 0.5 in the first part; 1.5 is dark; 2.5 is 1.5 s into the second; 3.5 half a second into the third
    assert found.sources == ("x/a.mp4", "b.mov") and found.frames == ((0, 5.5), None, (1, 1.5), (0, 6.5))


def test_events_of_one_video_in_another_order():
    found = of(in_turn(part("a.mp4", 2, 4), part("a.mp4", 0, 2)))
    assert found.sources == ("a.mp4",) and found.frames == ((0, 2.5), (0, 3.5), (0, 0.5), (0, 1.5))


@pytest.mark.parametrize(
    ("effect", "seconds"),
    [
        (Effect(name="reverse"), [13.5, 12.5, 11.5, 10.5]),
        (Effect(name="reverse", start_s=1.0, end_s=3.0), [10.5, 12.5, 11.5, 13.5]),
        (Effect(name="mirror"), [10.5, 11.5, 12.5, 13.5]),
        (Effect(name="dark", start_s=3.0), [10.5, 11.5, 12.5, None]),
    ],
)
def test_what_an_effect_shows_when(effect, seconds):
    """Of a source that starts at 10 s of its file; the interval is that of played time."""
    found = of(Montage(sources=(VideoRef(path="a.mp4", start_s=10.0),), effects=(effect,)))
    assert [origin and origin[1] for origin in found.frames] == seconds


def test_a_slow_segment_shows_half_of_the_seconds_and_a_gap_is_left_out():
    """1 s in 2 s of playing, then from 3 s on."""
    segments = (Segment(source=0, start_s=0.0, end_s=1.0, speed=0.5), Segment(source=0, start_s=3.0, end_s=5.0))
    found = of(Montage(sources=(VideoRef(path="a.mp4"),), segments=segments))
    assert found.frames == ((0, 0.25), (0, 0.75), (0, 3.5), (0, 4.5))


def test_of_a_file_cut_before_the_row_tells():
    cut = of(VideoRef(path="cut.mp4"), pieces=[[1, 0.0, 1.0], [0, 0.0, 1.0], [1, 1.0, 2.0]], dark=[0.0, 1.0])
    assert cut.sources == ("video 2", "video 1")  # as they are shown
    assert cut.frames == (None, (1, 0.5), (0, 1.5), (0, 2.5))  # the file goes on after its last piece


OTHER = [True, "night", [1, 2, 3, 4], [[None, 1, 2]], [["a", "b"]], [float("nan"), 1], {}, [[0, 2, 1]]]


@pytest.mark.parametrize("value", OTHER)
def test_other_meanings_of_these_words_are_let_be(value):
    assert of(VideoRef(path="a.mp4"), pieces=value, dark=value) == of(VideoRef(path="a.mp4"))
