"""Videos as they come: each is read right, upright and at the right times, or refused for a reason that has a name."""

import os
import socket
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.media import videos
from tests.media.videos import FPS, LEVELS, corners, counting, grey, write_video
from vidbridge.media.decode import decode, letterboxed, resized
from vidbridge.media.frames import FrameBudget
from vidbridge.media.video_file import MAX_CANVAS_PIXELS, VideoError, VideoFile, turned
from vidbridge.types import Montage, VideoRef

AS_IT_IS = FrameBudget(fps=2.0, max_frames=64, min_pixels=1, max_pixels=1)


def shown(path, budget=AS_IT_IS, **part):
    return decode(VideoRef(path=str(path), **part), budget)


def assert_counts(clip, tolerance=1.0):
    """Every frame is the one on show at its time, within one frame."""
    numbers = clip.frames.mean(axis=(1, 2, 3)) / LEVELS
    assert np.abs(numbers - np.floor(clip.times_s * FPS + 1e-6)).max() <= tolerance, (numbers, clip.times_s)


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


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_stands_upright(tmp_path, rotation):
    clip = shown(write_video(tmp_path / "r.mp4", [corners()] * 5, rotation=rotation))
    expected = np.rot90(corners(), rotation // 90)  # counterclockwise, as the container counts
    assert clip.frames.shape[1:] == expected.shape
    assert np.abs(clip.frames[0].astype(int) - expected).mean() < 12
    with VideoFile(str(tmp_path / "r.mp4")) as file:
        assert (file.height, file.width) == expected.shape[:2]


def test_display_matrices_by_hand():
    one, two = 1, -1
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    cases = {
        (one, 0, 0, one): [[0, 1, 2], [3, 4, 5]],
        (two, 0, 0, one): [[2, 1, 0], [5, 4, 3]],  # mirrored, as some phones film their owner
        (one, 0, 0, two): [[3, 4, 5], [0, 1, 2]],
        (0, one, one, 0): [[0, 3], [1, 4], [2, 5]],
        (0, two, one, 0): [[2, 5], [1, 4], [0, 3]],  # counterclockwise
        (0, one, two, 0): [[3, 0], [4, 1], [5, 2]],
    }
    for (a, b, c, d), expected in cases.items():
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1]) * 65536
        assert turned(pixels, matrix)[..., 0].tolist() == expected


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


def test_a_header_without_a_duration_is_counted_and_no_time_at_all_is_refused(tmp_path):
    path = videos.without_duration(counting(tmp_path / "a.mp4"))
    assert_counts(shown(path))
    with VideoFile(str(path)) as file:
        assert file.duration_s == pytest.approx(4.0, abs=0.11)


def test_a_huge_canvas_is_refused_before_it_is_allocated(tmp_path):
    """8192 x 8192 pixels, 201 MB as RGB, in a file of 200 kB."""
    path = write_video(tmp_path / "bomb.mov", [np.zeros((8192, 8192, 3), np.uint8)], codec="png", pix_fmt="rgb24")
    assert path.stat().st_size < 400_000 and 8192**2 > MAX_CANVAS_PIXELS
    code = f"""
import resource
from vidbridge.media.decode import VideoError, decode
from vidbridge.media.frames import FrameBudget
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


@pytest.mark.parametrize("height, width", [(47, 64), (48, 63), (31, 45)])
def test_odd_sizes(tmp_path, height, width):
    frames = [grey(LEVELS * k, height, width) for k in range(20)]
    clip = shown(write_video(tmp_path / "odd.mkv", frames, pix_fmt="yuv444p"))
    assert clip.frames.shape[1:] == (height, width, 3)
    assert_counts(clip, tolerance=0.5)


def test_ten_bits(tmp_path):
    clip = shown(counting(tmp_path / "ten.mkv", codec="ffv1", pix_fmt="yuv420p10le"))
    assert_counts(clip, tolerance=0.5)


def test_what_is_transparent_is_black(tmp_path):
    pixels = np.full((48, 64, 4), 200, np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = 0, 255
    clip = shown(write_video(tmp_path / "alpha.mov", [pixels] * 5, codec="qtrle", pix_fmt="argb", rgb="rgba"))
    assert (clip.frames[:, :, :32] == 0).all() and (clip.frames[:, :, 32:] == 200).all()


def test_sound_that_goes_on_after_the_pictures_is_not_counted(tmp_path):
    counting(tmp_path / "a.mp4", num_frames=20, audio_s=6.0)
    clip = shown(tmp_path / "a.mp4")
    assert clip.times_s[-1] == 1.75  # 2 s of pictures
    assert_counts(clip)


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
        def _decoded(self):
            for frame in super()._decoded():
                decoded.append(frame.pts)
                yield frame

    with Counting(str(tmp_path / "long.mp4")) as file:
        list(file.frames_at(np.linspace(5, 115, 12)))
    assert len(decoded) < 12 * 15  # a group of pictures each, of 1200


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


def test_matroska_that_begins_later_than_at_nothing(tmp_path):
    """Its duration is the time of its end."""
    path = counting(tmp_path / "a.mkv", times_ms=[10_000 + 100 * k for k in range(40)])
    assert_counts(shown(path))
    with VideoFile(str(path)) as file:
        assert file.duration_s == pytest.approx(4.0, abs=0.11)


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


def test_a_beginning_that_cannot_be_shown_is_refused(tmp_path):
    """Packets before time 0, which matroska cannot hold: the first key frame with a time is the 15th frame."""
    times_ms = [100 * k - 730 for k in range(40)]
    options = {"avoid_negative_ts": "disabled"}
    frames = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8) for k in range(40)]
    path = write_video(
        tmp_path / "a.mkv", frames, times_ms=times_ms, gop=8, bf="2", preset="veryfast", container=options
    )
    with av.open(str(path)) as container:
        assert any(frame.time is None for frame in container.decode(video=0))
    assert refused(path) == "damaged"


def test_frames_come_in_the_size_of_the_budget(tmp_path):
    budget = FrameBudget(fps=2.0, max_frames=8, min_pixels=28 * 28, max_pixels=4 * 28 * 28, multiple=28)
    write_video(tmp_path / "a.mp4", [corners(120, 240)] * 10)
    # 120 x 240 has 28800 pixels, 3136 allowed: shrunk by 3.03 to 39.6 x 79.2, then down to multiples of 28
    assert shown(tmp_path / "a.mp4", budget).frames.shape == (2, 28, 56, 3)
    # 1176 pixels each: shrunk by 4.95 to 24 x 48, at least one multiple either way
    less = FrameBudget(fps=2.0, max_frames=8, min_pixels=1, max_pixels=9**9, total_pixels=2352, multiple=28)
    assert shown(tmp_path / "a.mp4", less).frames.shape == (2, 28, 28, 3)


def test_resizing_is_that_of_the_model_s_processor():
    """Pillow here, torch where frames reach the processor in full size: the same to one grey level."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 122, 3), np.uint8)
    theirs = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], size=(56, 84), mode="bicubic", antialias=True
    )
    assert np.abs(resized(pixels, (56, 84)).astype(int) - theirs[0].permute(1, 2, 0).numpy()).max() <= 1


def test_letterboxing_keeps_the_shape_and_fills_what_is_nearly_full():
    white = np.full((40, 40, 3), 255, np.uint8)
    boxed = letterboxed(white, (40, 80))
    assert (boxed[:, 20:60] == 255).all() and not boxed[:, :20].any() and not boxed[:, 60:].any()
    assert (letterboxed(white, (40, 42)) == 255).all()


def test_a_montage_shows_its_parts_in_turn_and_the_dark(tmp_path):
    counting(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", [grey(250 - LEVELS * k, 96, 128) for k in range(40)])
    a, b = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    parts = (
        VideoRef(path=b, start_s=0.0, end_s=1.5),
        VideoRef(path=a, start_s=0.0, end_s=1.0),
        VideoRef(path=b, start_s=1.5, end_s=2.5),
        VideoRef(path=a, start_s=3.0, end_s=4.0),
    )
    clip = decode(Montage(parts=parts, dark_s=(1.5, 2.0)), AS_IT_IS)
    assert clip.times_s.tolist() == [0.25 + 0.5 * k for k in range(9)]
    assert clip.frames.shape == (9, 96, 128, 3)  # as large as what is shown first
    # b at 0.25, 0.75, 1.25; a at 0.25 (dark), 0.75; b at 1.75, 2.25; a at 3.25, 3.75
    in_a, in_b = (lambda time_s: LEVELS * int(time_s * FPS)), (lambda time_s: 250 - LEVELS * int(time_s * FPS))
    expected = [in_b(0.25), in_b(0.75), in_b(1.25), 0, in_a(0.75), in_b(1.75), in_b(2.25), in_a(3.25), in_a(3.75)]
    assert clip.frames.mean(axis=(1, 2, 3)) == pytest.approx(expected, abs=3)
    with pytest.raises(VideoError, match="nothing would be hidden"):
        decode(Montage(parts=parts, dark_s=(0.3, 0.4)), AS_IT_IS)
