"""Frames kept on disk: the same frames, never those of another file or budget, never more bytes than allowed."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.media.videos import counting
from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.frame_cache import FrameCache, entry_name, read_entry
from vidbridge.types import Effect, Montage, Segment, VideoRef

BUDGET = FrameBudget(fps=2.0, max_frames=8, min_pixels=256, max_pixels=1024, multiple=8)


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self, video, frames):
        self.calls += 1
        return decode(video, frames)


def same(one, two):
    return np.array_equal(one.frames, two.frames) and np.array_equal(one.times_s, two.times_s)


def test_a_second_look_decodes_nothing(tmp_path):
    video = VideoRef(path=str(counting(tmp_path / "a.mp4")))
    counted = Counted()
    cache = FrameCache(counted, tmp_path / "cache", 10**6)
    first, second = cache(video, BUDGET), FrameCache(counted, tmp_path / "cache", 10**6)(video, BUDGET)
    assert counted.calls == 1 and same(first, second)


def test_another_part_budget_or_file_is_another_entry(tmp_path):
    path = str(counting(tmp_path / "a.mp4"))
    video = VideoRef(path=path)
    montage = Montage(sources=(replace(video, end_s=1.0),))
    names = {
        entry_name(video, BUDGET),
        entry_name(replace(video, end_s=1.0), BUDGET),
        entry_name(video, replace(BUDGET, max_frames=4)),
        entry_name(montage, BUDGET),
        entry_name(replace(montage, segments=(Segment(source=0, start_s=0.0, end_s=1.0, speed=0.5),)), BUDGET),
        entry_name(replace(montage, effects=(Effect(name="dark"),)), BUDGET),
        entry_name(replace(montage, effects=(Effect(name="dark", end_s=0.5),)), BUDGET),
        entry_name(replace(montage, effects=(Effect(name="shuffle", params={"seed": 1}),)), BUDGET),
        entry_name(replace(montage, effects=(Effect(name="shuffle", params={"seed": 2}),)), BUDGET),
    }
    os.utime(path, ns=(0, 10**18))
    names.add(entry_name(video, BUDGET))
    counting(tmp_path / "a.mp4", num_frames=20)
    os.utime(path, ns=(0, 10**18))
    names.add(entry_name(video, BUDGET))
    assert len(names) == 11


def test_another_version_of_an_effect_from_outside_is_another_entry(tmp_path, monkeypatch):
    (tmp_path / "my_look.py").write_text("def negative(frames):\n    return frames\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = VideoRef(path=str(counting(tmp_path / "a.mp4")))
    montage = Montage(sources=(source,), effects=(Effect(name="my_look.negative"),))
    before = entry_name(montage, BUDGET)
    assert entry_name(montage, BUDGET) == before
    os.utime(tmp_path / "my_look.py", ns=(0, 10**18))
    assert entry_name(montage, BUDGET) != before


def test_what_was_used_least_recently_goes_first(tmp_path):
    """Entries of 8 frames of 24 x 32 pixels, 18.5 kB each; 80 kB hold four of them."""
    videos = [VideoRef(path=str(counting(tmp_path / f"{k}.mp4"))) for k in range(6)]
    counted = Counted()
    cache = FrameCache(counted, tmp_path / "cache", 80_000)
    for number, video in enumerate(videos):
        cache(video, BUDGET)
        path = tmp_path / "cache" / entry_name(video, BUDGET)
        os.utime(path, ns=(number, number)) if path.exists() else None
        if number == 3:
            cache(videos[0], BUDGET)  # used again, and so younger than the others
    held = [(tmp_path / "cache" / entry_name(video, BUDGET)).exists() for video in videos]
    assert held[0] and held[5] and not held[1] and not held[2]
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*")) <= 80_000


@pytest.mark.parametrize("content", [b"", b"[8, 2, 2, 3]\nshort", b"{}\n", b"\xff\xfe", b"[0]\n"])
def test_a_damaged_entry_is_made_again(tmp_path, content):
    video = VideoRef(path=str(counting(tmp_path / "a.mp4")))
    counted = Counted()
    cache = FrameCache(counted, tmp_path / "cache", 10**6)
    first = cache(video, BUDGET)
    path = tmp_path / "cache" / entry_name(video, BUDGET)
    path.write_bytes(content)
    assert same(cache(video, BUDGET), first) and counted.calls == 2
    assert same(read_entry(path), first)


def test_errors_pass_and_are_not_kept(tmp_path):
    cache = FrameCache(decode, tmp_path / "cache", 10**6)
    with pytest.raises(VideoError, match="no such video file"):
        cache(VideoRef(path=str(tmp_path / "none.mp4")), BUDGET)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(VideoError, match="bad.mp4"):
        cache(VideoRef(path=str(tmp_path / "bad.mp4")), BUDGET)
    assert not list(tmp_path.glob("cache/*/*"))


def test_several_processes_share_a_folder(tmp_path):
    """Each reads all videos three times while entries are thrown out all the time."""
    paths = [str(counting(tmp_path / f"{k}.mp4", num_frames=10 + 5 * k)) for k in range(5)]
    code = f"""
from pathlib import Path
import numpy as np
from tests.media.test_frame_cache import BUDGET
from vidbridge.media.frame_cache import FrameCache
from vidbridge.media.decode import decode
from vidbridge.types import VideoRef
videos = [VideoRef(path=path) for path in {paths}]
right = [decode(video, BUDGET).frames for video in videos]
cache = FrameCache(decode, Path({str(tmp_path / "cache")!r}), 40_000)
for _ in range(20):
    for video, frames in zip(videos, right):
        assert np.array_equal(cache(video, BUDGET).frames, frames)
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
