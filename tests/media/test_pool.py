"""Decoding in other processes: the same frames, and no way for a video to hold up or end the run."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.media.videos import corners, counting, dark, in_turn, write_video
from vidbridge.errors import VideoError
from vidbridge.media import pool as module
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.pool import WorkerPool
from vidbridge.media.reader import VideoReader
from vidbridge.media.worker import from_request, to_request
from vidbridge.types import Effect, VideoRef

BUDGET = FrameBudget(fps=2.0, max_frames=8, min_pixels=256, max_pixels=1024, multiple=8)


@pytest.fixture
def pool():
    made = WorkerPool(2, deadline_s=60.0)
    yield made
    made.close()


def processes(pool):
    """Those that are idle."""
    return [worker._process for worker in list(pool._idle.queue) if worker is not None]


def same(one, two):
    return np.array_equal(one.frames, two.frames) and np.array_equal(one.times_s, two.times_s)


def test_a_worker_reads_what_is_read_here(pool, tmp_path):
    path = str(counting(tmp_path / "a.mp4"))
    other = str(write_video(tmp_path / "b.mp4", [corners()] * 20, rotation=90))
    part = VideoRef(path=path, start_s=0.5, end_s=3.0)
    crop = Effect(name="crop", start_s=1.0, params={"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 0.5})
    montage = in_turn(VideoRef(path=other, end_s=1.0), part, effects=[dark(0.0, 0.9), crop])
    slow = replace(montage, segments=(replace(montage.segments[1], speed=0.5),))
    for video in (VideoRef(path=path), part, montage, slow):
        assert same(pool.decode(video, BUDGET), decode(video, BUDGET))
        assert from_request(to_request(video, BUDGET)) == (video, BUDGET)
    assert pool.describe(other) == {"duration_s": 2.0, "height": 64, "width": 48}
    assert len(processes(pool)) == 1  # what one can do one does


def test_a_worker_of_a_large_process_is_kept(pool, tmp_path, monkeypatch):
    path = str(counting(tmp_path / "a.mp4"))
    monkeypatch.setattr(module, "RECYCLE_MB", 256)
    much = np.ones(256 * 2**20 // 8)  # every page written
    assert pool.decode(VideoRef(path=path), BUDGET).frames.size
    assert len(processes(pool)) == 1 and much.all()


def test_errors_keep_their_reason_and_the_worker_goes_on(pool, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    (process,) = [pool.describe(str(counting(tmp_path / "a.mp4"))) and processes(pool)[0]]
    with pytest.raises(VideoError, match="bad.mp4") as error:
        pool.decode(VideoRef(path=str(tmp_path / "bad.mp4")), BUDGET)
    assert error.value.reason == "not_a_video" and processes(pool) == [process]


def test_a_worker_that_hangs_is_killed_at_the_deadline(pool, tmp_path):
    path = str(counting(tmp_path / "a.mp4"))
    pool.decode(VideoRef(path=path), BUDGET)
    (stuck,) = processes(pool)
    os.kill(stuck.pid, signal.SIGSTOP)
    pool.deadline_s = 0.2
    with pytest.raises(VideoError, match="within 0.2 s") as error:
        pool.decode(VideoRef(path=path), BUDGET)
    assert error.value.reason == "deadline" and stuck.returncode == -signal.SIGKILL
    pool.deadline_s = 60.0
    assert len(pool.decode(VideoRef(path=path), BUDGET).frames) == 8


def test_a_worker_that_dies_costs_one_video(pool, tmp_path):
    path = str(counting(tmp_path / "a.mp4"))
    pool.decode(VideoRef(path=path), BUDGET)
    processes(pool)[0].kill()
    with pytest.raises(VideoError) as error:
        pool.decode(VideoRef(path=path), BUDGET)
    assert error.value.reason == "crashed"
    pool.decode(VideoRef(path=path), BUDGET)


def test_workers_are_replaced_after_so_many_videos(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECYCLE_AFTER", 2)
    path = str(counting(tmp_path / "a.mp4"))
    pool.describe(path)
    (first,) = processes(pool)
    pool.describe(path)
    assert processes(pool) == [] and first.poll() is not None
    monkeypatch.setattr(module, "RECYCLE_MB", 1)  # python alone takes more
    pool.describe(path)
    assert processes(pool) == []


def test_a_worker_may_not_have_all_memory(tmp_path, monkeypatch):
    """400 frames of 640 x 480 pixels are 369 MB, in a process that may have 256 MB with everything it loads."""
    monkeypatch.setattr(module, "MAX_WORKER_MB", 256)
    path = write_video(tmp_path / "a.mp4", [corners(480, 640)] * 5)
    pool = WorkerPool(1, deadline_s=60.0)
    with pytest.raises(VideoError) as error:
        pool.decode(VideoRef(path=str(path)), FrameBudget(fps=None, max_frames=400, min_pixels=1, max_pixels=1))
    assert error.value.reason == "memory"
    assert pool.describe(str(path))["height"] == 480
    pool.close()


def test_threads_are_served_side_by_side(pool, tmp_path):
    paths = [str(counting(tmp_path / f"{k}.mp4", num_frames=10 + k)) for k in range(8)]
    read = {}
    threads = [
        threading.Thread(target=lambda path=path: read.update({path: pool.decode(VideoRef(path=path), BUDGET)}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(read[path], decode(VideoRef(path=path), BUDGET)) for path in paths)
    assert len(processes(pool)) == 2


def test_workers_end_with_their_pool_and_with_a_killed_run(tmp_path):
    pool = WorkerPool(1, deadline_s=60.0)
    pool.describe(str(counting(tmp_path / "a.mp4")))
    (process,) = processes(pool)
    del pool
    gc.collect()
    assert process.poll() is not None

    code = f"""
import os
from vidbridge.media.pool import WorkerPool
pool = WorkerPool(1, deadline_s=60.0)
pool.describe({str(tmp_path / "a.mp4")!r})
print([worker._process.pid for worker in pool._idle.queue if worker][0], flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended, and waiting for an init that never looks
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives the run")


def test_nothing_outside_of_the_root_is_read(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    counting(tmp_path / "secret.mp4")
    counting(root / "a.mp4")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    reader = VideoReader(str(root))

    def reason(path):
        with pytest.raises(VideoError) as error:
            reader(VideoRef(path=path), BUDGET)
        return error.value.reason

    for path in ("../secret.mp4", "link.mp4", str(tmp_path / "secret.mp4"), "/etc/passwd", "x/../../secret.mp4"):
        assert reason(path) == "outside_root"
    part = VideoRef(path="a.mp4", end_s=1.0)
    with pytest.raises(VideoError, match="leads out of"):
        reader(in_turn(part, VideoRef(path="../secret.mp4", end_s=1.0)), BUDGET)
    assert reason("http://127.0.0.1:9/a.mp4") == reason("loop.mp4") == reason("zero\0byte.mp4") == "missing"
    for path in ("a.mp4", "inside.mp4", "./a.mp4", str(root / "a.mp4")):
        assert len(reader(VideoRef(path=path), BUDGET).frames) == 8
