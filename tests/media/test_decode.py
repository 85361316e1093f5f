"""Real mp4 files, written and read back."""

from fractions import Fraction

import av
import numpy as np
import pytest

from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.write import write_mp4
from vidbridge.types import Clip, VideoRef

BUDGET = FrameBudget(fps=2.0, max_frames=100, min_pixels=1, max_pixels=1)


def grey_clip(levels, fps):
    """One flat grey level a frame, so that every decoded frame says which one it is."""
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    return Clip(frames=frames, times_s=np.arange(len(levels)) / fps)


def levels_of(clip):
    return clip.frames.mean(axis=(1, 2, 3))


def test_frames_are_those_on_show_at_the_wanted_times(tmp_path):
    levels = np.arange(16) * 15  # 2 s at 8 fps
    write_mp4(grey_clip(levels, 8), tmp_path / "a.mp4", fps=8)
    clip = decode(VideoRef(path=str(tmp_path / "a.mp4")), BUDGET)
    assert clip.times_s.tolist() == [0.25, 0.75, 1.25, 1.75]
    # frame k is on show from k / 8 s: the wanted times fall on frames 2, 6, 10, 14
    assert levels_of(clip) == pytest.approx([30, 90, 150, 210], abs=3)


def test_a_part_of_a_video_counts_from_its_own_start(tmp_path):
    write_mp4(grey_clip(np.arange(16) * 15, 8), tmp_path / "a.mp4", fps=8)
    clip = decode(VideoRef(path=str(tmp_path / "a.mp4"), start_s=1.0, end_s=2.0), BUDGET)
    assert clip.times_s.tolist() == [0.25, 0.75]
    assert levels_of(clip) == pytest.approx([150, 210], abs=3)


def test_variable_frame_rate(tmp_path):
    """Frames at 0, 0.1, 1.0 and 1.9 s: the one on show at 0.75 s is the second, whatever its number says."""
    path = tmp_path / "vfr.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, level in [(0, 20), (100, 80), (1000, 140), (1900, 200)]:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = decode(VideoRef(path=str(path), end_s=2.0), BUDGET)
    shown_at = dict(zip(clip.times_s.round(2).tolist(), levels_of(clip)))
    for time_s, level in shown_at.items():
        expected = 20 if time_s < 0.1 else 80 if time_s < 1.0 else 140 if time_s < 1.9 else 200
        assert level == pytest.approx(expected, abs=4), time_s


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_what_is_not_a_video_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match="bad.mp4"):
        decode(VideoRef(path=str(path)), BUDGET)


def test_missing_file_and_start_behind_the_end(tmp_path):
    with pytest.raises(VideoError, match="no such video file"):
        decode(VideoRef(path=str(tmp_path / "none.mp4")), BUDGET)
    write_mp4(grey_clip([0] * 8, 8), tmp_path / "a.mp4", fps=8)
    with pytest.raises(VideoError, match="1.00 s long"):
        decode(VideoRef(path=str(tmp_path / "a.mp4"), start_s=5.0), BUDGET)


def test_odd_sizes_are_refused_when_writing(tmp_path):
    with pytest.raises(ValueError, match="even sides"):
        write_mp4(Clip(frames=np.zeros((2, 31, 32, 3), np.uint8), times_s=np.arange(2.0)), tmp_path / "a.mp4", fps=8)
    assert not list(tmp_path.iterdir())
