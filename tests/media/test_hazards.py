"""Videos that are broken, or made to do harm: each is read right, or refused for a reason that has a name."""

import os
import socket
import subprocess
import sys

import av
import numpy as np
import pytest

from tests.media import videos
from tests.media.videos import FPS, LEVELS, assert_counts, counting, shown, write_video
from vidbridge.errors import VideoError
from vidbridge.media.video_file import MAX_CANVAS_PIXELS, VideoFile


def refused(path, **part):
    with pytest.raises(VideoError) as error:
        shown(path, **part)
    assert str(path) in str(error.value) and error.value.reason in str(error.value)
    return error.value.reason


def test_empty_audio_only_missing_and_no_file_at_all(tmp_path):
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refused(tmp_path / "empty.mp4") == "empty"
    assert refused(videos.audio_only(tmp_path / "sound.mp4")) == "no_video_stream"
    assert refused(tmp_path / "none.mp4") == refused("zero\0byte.mp4") == "missing"
    assert refused(tmp_path / "pipe.mp4") == refused(tmp_path) == "not_a_file"


def test_text_is_no_video_and_a_wrong_extension_does_not_matter(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"a night at the opera\n" * 200)
    assert refused(tmp_path / "text.mp4") == "not_a_video"
    counting(tmp_path / "a.mp4").rename(tmp_path / "a.avi")
    assert_counts(shown(tmp_path / "a.avi"), tolerance=0.5)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "fast.mp4"])
def test_a_file_without_its_end(tmp_path, name, part):
    """Without its index an mp4 cannot be opened; where the file says how long it was, the gap is seen."""
    container = {"movflags": "faststart"} if name == "fast.mp4" else {}
    noise = np.random.default_rng(0)
    path = write_video(
        tmp_path / name, [noise.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(120)], container=container
    )
    # the last packet may be there in part
    assert refused(videos.cut(path, part)) in (("not_a_video",) if name == "a.mp4" else ("cut_short", "damaged"))


def test_what_was_asked_for_before_the_cut_is_still_right(tmp_path):
    videos.cut(counting(tmp_path / "a.mkv", codec="mpeg4", gop=1, qscale="2"), 0.6)
    assert_counts(shown(tmp_path / "a.mkv", end_s=1.0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damage_in_the_middle_is_found_or_does_not_touch_what_is_shown(tmp_path, name, seed):
    """2 kB of noise over a stream; single bits that change a picture into another valid one nobody can find."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    path = write_video(tmp_path / name, noise, gop=8, bf="2", preset="veryfast", crf="20")
    whole = shown(path)
    videos.patched(path, 0.15 + 0.12 * seed, 2000, seed=seed)
    try:
        clip = shown(path)
    except VideoError as error:
        assert error.reason in ("damaged", "cut_short", "not_a_video", "no_frames"), error
    else:
        assert np.abs(clip.frames.astype(int) - whole.frames).mean(axis=(1, 2, 3)).max() < 3


def test_a_huge_canvas_is_refused_before_it_is_allocated(tmp_path):
    """8192 x 8192 pixels, 201 MB as RGB, in a file of 200 kB."""
    path = write_video(tmp_path / "bomb.mov", [np.zeros((8192, 8192, 3), np.uint8)], codec="png", pix_fmt="rgb24")
    assert path.stat().st_size < 400_000 and 8192**2 > MAX_CANVAS_PIXELS
    code = f"""
import resource
from vidbridge.media.decode import VideoError, decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.types import VideoRef
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(VideoRef(path={str(path)!r}), FrameBudget(fps=2.0, max_frames=2, min_pixels=1, max_pixels=1))
except VideoError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(error.reason, grown // 1024, "torch" in __import__("sys").modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    reason, grown_mb, has_torch = done.stdout.split()
    assert reason == "too_large" and int(grown_mb) < 100 and has_torch == "False", done


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "remote": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:{port}/a.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_open_nothing(tmp_path, kind):
    """Neither the file nor the address that a playlist in disguise names."""
    counting(tmp_path / "secret.mp4")
    opened_before = os.stat(tmp_path / "secret.mp4").st_atime_ns
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        (tmp_path / "list.mp4").write_text(PLAYLISTS[kind].replace("{port}", str(port)))
        assert refused(tmp_path / "list.mp4") == "not_a_video"
        with pytest.raises(TimeoutError):
            server.accept()
    assert os.stat(tmp_path / "secret.mp4").st_atime_ns == opened_before


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "subfile,,start,0:a.mp4"])
def test_addresses_are_no_files(name):
    assert refused(name) == "missing"


def test_a_key_frame_that_is_gone_is_not_taken_for_another(tmp_path):
    """Two key frames after what is shown: the first of them is lost, and what is sought there is 9 frames later."""
    frames = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8) for k in range(60)]
    path = write_video(tmp_path / "a.mkv", frames, gop=10)
    with av.open(str(path)) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    content = bytearray(path.read_bytes())
    content[keys[1] - 300 : keys[1] + 300] = bytes(600)
    path.write_bytes(content)
    assert refused(path, end_s=3.0) == "damaged"


def test_what_says_how_transparent_a_frame_is_is_no_gap(tmp_path):
    """A kilobyte and more of it behind each picture."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (96, 128, 4), np.uint8) for _ in range(4)]
    path = write_video(tmp_path / "a.webm", frames, codec="libvpx-vp9", pix_fmt="yuva420p", rgb="rgba")
    with av.open(str(path)) as container:
        assert all(packet.get_sidedata("matroska_block_additional").data_size > 1024 for packet in packets(container))
    assert len(shown(path).frames) == 1


def packets(container):
    return [packet for packet in container.demux(video=0) if packet.size]


def test_pictures_before_time_0_do_not_count(tmp_path):
    """Matroska cannot say their times: frame 8 at 70 ms is the first with one, and made of those before."""
    times_ms = [100 * k - 730 for k in range(40)]
    options = {"avoid_negative_ts": "disabled"}
    path = counting(tmp_path / "a.mkv", times_ms=times_ms, gop=8, bf="2", preset="veryfast", container=options)
    with av.open(str(path)) as container:
        assert any(frame.time is None for frame in container.decode(video=0))
    with VideoFile(str(path)) as file:
        levels = [frame.mean() for frame in file.frames_at([0.12, 0.52, 1.02, 3.02])]
        # frame k is on show from k / 10 - 0.73 s; the file begins with its first time, 70 ms
        start_s = file._extent.zero_s
    expected = [LEVELS * int((time_s + start_s + 0.73) * FPS + 1e-6) for time_s in (0.12, 0.52, 1.02, 3.02)]
    assert levels == pytest.approx(expected, abs=2)
