"""How frames look: upright, in the right colours, in the size that is wanted, in the order of a montage."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.media.videos import (
    AS_IT_IS,
    FPS,
    LEVELS,
    assert_counts,
    corners,
    counting,
    dark,
    grey,
    in_turn,
    shown,
    write_video,
)
from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.resize import letterboxed, resized
from vidbridge.media.upright import turned
from vidbridge.media.video_file import VideoFile
from vidbridge.types import VideoRef


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


@pytest.mark.parametrize("height, width", [(47, 64), (48, 63), (31, 45)])
def test_odd_sizes(tmp_path, height, width):
    frames = [grey(LEVELS * k, height, width) for k in range(20)]
    clip = shown(write_video(tmp_path / "odd.mkv", frames, pix_fmt="yuv444p"))
    assert clip.frames.shape[1:] == (height, width, 3)
    assert_counts(clip, tolerance=0.5)


def test_ten_bits(tmp_path):
    clip = shown(counting(tmp_path / "ten.mkv", codec="ffv1", pix_fmt="yuv420p10le"))
    assert_counts(clip, tolerance=0.5)


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.full((48, 64, 4), 200, np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = 0, 255
    clip = shown(write_video(tmp_path / "alpha.mov", [pixels] * 5, codec="qtrle", pix_fmt="argb", rgb="rgba"))
    assert (clip.frames[:, :, :32] == 255).all() and (clip.frames[:, :, 32:] == 200).all()


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
    clip = decode(in_turn(*parts, effects=[dark(1.5, 2.0)]), AS_IT_IS)
    assert clip.times_s.tolist() == [0.25 + 0.5 * k for k in range(9)]
    assert clip.frames.shape == (9, 96, 128, 3)  # as large as what is shown first
    # b at 0.25, 0.75, 1.25; a at 0.25 (dark), 0.75; b at 1.75, 2.25; a at 3.25, 3.75
    in_a, in_b = (lambda time_s: LEVELS * int(time_s * FPS)), (lambda time_s: 250 - LEVELS * int(time_s * FPS))
    expected = [in_b(0.25), in_b(0.75), in_b(1.25), 0, in_a(0.75), in_b(1.75), in_b(2.25), in_a(3.25), in_a(3.75)]
    assert clip.frames.mean(axis=(1, 2, 3)) == pytest.approx(expected, abs=3)
    with pytest.raises(VideoError, match="no frame between 0.3 s and 0.4 s: dark would change nothing"):
        decode(in_turn(*parts, effects=[dark(0.3, 0.4)]), AS_IT_IS)
