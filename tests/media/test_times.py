"""Frames are those on show at their times, whatever the container says of its times and however they are found."""

import numpy as np
import pytest

from tests.media import videos
from tests.media.videos import FPS, assert_counts, counting, grey, shown, write_video
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.video_file import VideoFile


def test_one_frame(tmp_path):
    clip = shown(write_video(tmp_path / "one.mp4", [grey(200)]))
    assert clip.times_s.tolist() == [0.05] and clip.frames.mean() == pytest.approx(200, abs=3)
    uniform = shown(tmp_path / "one.mp4", FrameBudget(fps=None, max_frames=4, min_pixels=1, max_pixels=1))
    assert len(uniform.frames) == 4 and uniform.times_s[-1] < 0.1


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate(tmp_path, name):
    times_ms = [0, 40, 80, 700, 740, 1500, 2300, 2310, 2320, 2960]
    path = write_video(tmp_path / name, [grey(20 * k) for k in range(10)], times_ms=times_ms)
    clip = shown(path, FrameBudget(fps=20.0, max_frames=64, min_pixels=1, max_pixels=1), end_s=2.95)
    expected = np.searchsorted(times_ms, clip.times_s * 1000 + 1, side="right") - 1
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) / 20 - expected).max() < 0.3


def test_a_header_without_a_duration_is_counted_and_no_time_at_all_is_refused(tmp_path):
    path = videos.without_duration(counting(tmp_path / "a.mp4"))
    assert_counts(shown(path))
    with VideoFile(str(path)) as file:
        assert file.duration_s == pytest.approx(4.0, abs=0.11)


def test_sound_that_goes_on_after_the_pictures_is_not_counted(tmp_path):
    counting(tmp_path / "a.mp4", num_frames=20, audio_s=6.0)
    clip = shown(tmp_path / "a.mp4")
    assert clip.times_s[-1] == 1.75  # 2 s of pictures
    assert_counts(clip)


def test_matroska_that_begins_later_than_at_nothing(tmp_path):
    """Its duration is the time of its end."""
    path = counting(tmp_path / "a.mkv", times_ms=[10_000 + 100 * k for k in range(40)])
    assert_counts(shown(path))
    with VideoFile(str(path)) as file:
        assert file.duration_s == pytest.approx(4.0, abs=0.11)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "open.mp4"])
def test_skipping_shows_what_reading_every_frame_shows(tmp_path, name):
    """Key frames each second: frames 7 s apart are sought; a stream without an index is read through."""
    options = {"x264-params": "open-gop=1:bframes=3", "crf": "18", "preset": "fast"} if name == "open.mp4" else {}
    frames = [grey((7 * k) % 250) for k in range(400)]
    path = write_video(tmp_path / name, frames, gop=10, **({"bf": "3", **options}))
    budget = FrameBudget(fps=None, max_frames=6, min_pixels=1, max_pixels=1)
    clip = shown(path, budget)
    levels = clip.frames.mean(axis=(1, 2, 3))
    expected = [(7 * int(time_s * FPS + 1e-6)) % 250 for time_s in clip.times_s]
    assert levels == pytest.approx(expected, abs=3)


def test_skipping_decodes_little(tmp_path):
    write_video(tmp_path / "long.mp4", [grey(k % 250) for k in range(1200)], gop=10)
    decoded = []

    class Counting(VideoFile):
        def _decoded_from_start(self):
            yield from self._counted(super()._decoded_from_start())

        def _decoded_after_key(self):
            yield from self._counted(super()._decoded_after_key())

        def _counted(self, frames):
            for frame in frames:
                decoded.append(frame.pts)
                yield frame

    with Counting(str(tmp_path / "long.mp4")) as file:
        list(file.frames_at(np.linspace(5, 115, 12)))
    assert 12 <= len(decoded) < 12 * 15  # a group of pictures each, of 1200
