"""The clips of the record hold the frames that the model was given, and nothing else is opened for them."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import random_clip, random_image
from tests.media.videos import dark, in_turn
from tests.ranks import on_ranks
from tests.record.builders import group
from vidbridge.record.clips import SeenClip, is_image, playing_fps, seen_clip, seen_clips, shown, write_clips
from vidbridge.record.console import Console
from vidbridge.record.page import write_page
from vidbridge.record.tracker import SilentTracker, Tracker
from vidbridge.runtime import collectives
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.types import Clip, ImageRef, StepResult, VideoRef


def grey_steps(num_frames, height, width, step_s=0.5):
    """Each frame a level of its own, the second and the third black."""
    levels = np.arange(num_frames) * (200 // num_frames) + 40
    levels[1:3] = 0
    frames = np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).astype(np.uint8)
    return Clip(frames=frames, times_s=(np.arange(num_frames) + 0.5) * step_s)


def played(seen: SeenClip):
    """Frames, the seconds at which they come, and the whole."""
    with av.open(io.BytesIO(seen.content)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = list(file.decode(stream))
        whole_s = float(stream.duration * stream.time_base)
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [frame.time for frame in frames], whole_s


SIZES = [(1, 48, 48), (16, 48, 48), (5, 31, 27), (24, 280, 504), (3, 2, 1)]


@pytest.mark.parametrize("num_frames, height, width", SIZES)
def test_every_frame_is_there_once_in_its_order(num_frames, height, width):
    clip = grey_steps(num_frames, height, width)
    sample = group(totals=(1.0,), clips=[clip]).sample
    seen = seen_clip(sample, 0, clip)
    frames, times_s, whole_s = played(seen)
    assert frames.shape == (num_frames, height + height % 2, width + width % 2, 3)
    assert np.abs(frames[:, :height, :width].astype(int) - clip.frames).max() <= 4
    # half a second a frame, as in the video
    assert np.allclose(times_s, np.arange(num_frames) / 2, atol=1e-3) and whole_s == pytest.approx(num_frames / 2)
    assert seen.to_dict()["times_s"] == [0.25 + 0.5 * number for number in range(num_frames)]


def test_a_long_video_is_a_slide_show_and_its_times_are_told():
    clip = grey_steps(16, 16, 16, step_s=300 / 16)
    seen = seen_clip(group(totals=(1.0,), clips=[clip]).sample, 0, clip)
    assert played(seen)[2] == 8.0 and seen.times_s[-1] == 290.625  # 300 * 15.5 / 16


@given(st.integers(1, 64), st.floats(1e-6, 1e6))
def test_nothing_plays_too_slowly_or_too_fast(num_frames, step_s):
    fps = playing_fps(np.arange(num_frames) * step_s)
    assert 2 <= fps <= 60 and (num_frames == 1 or not 1 / 60 < step_s < 0.5 or abs(float(fps) * step_s - 1) < 0.01)


UIDS = ["qa/train/17", "../../etc/passwd", "a b\n'\"$(x)", "é漢\udce9", "", "/", "x" * 300]


@pytest.mark.parametrize("uid", UIDS)
def test_names_are_safe_whatever_the_uid(uid, tmp_path):
    clip = random_clip(2, 16, 16)
    ((seen,),) = seen_clips([group(totals=(1.0,), clips=[clip], uid=uid)])
    write_clips([seen], tmp_path)
    (path,) = (tmp_path / "clips").iterdir()
    assert path.read_bytes() == seen.content and seen.to_dict()["path"] == f"clips/{path.name}"
    assert len(path.name) < 64 and path.name.isascii()
    assert not set(path.name) & set(" /\\'\"$\n") and not path.name.startswith((".", "-"))


def test_the_same_frames_are_one_file_and_others_another(tmp_path):
    clip = random_clip(4, 16, 16)
    dark = Clip(frames=clip.frames * (np.arange(4) != 2)[:, None, None, None].astype(np.uint8), times_s=clip.times_s)
    for one in (clip, dark, clip):  # another event of the same row is hidden
        write_clips(seen_clips([group(totals=(1.0,), clips=[one])])[0], tmp_path)
    assert len(list((tmp_path / "clips").iterdir())) == 2


def test_what_is_on_show_is_told_by_stretches():
    parts = (VideoRef(path="a.mp4", end_s=1.0), VideoRef(path="b.mkv", end_s=1.0))
    parts += (VideoRef(path="a.mp4", start_s=1.0, end_s=3.0),)
    mixed = group(totals=(1.0,), clips=[random_clip(8, 16, 16)], videos=(in_turn(*parts, effects=[dark(3.0, 4.0)]),))
    ((seen,),) = seen_clips([mixed])
    lines = ["0.25-0.75 s: a.mp4", "1.25-1.75 s: b.mkv from 0.25 s", "2.25-2.75 s: a.mp4 from 1.25 s"]
    assert list(shown(seen.to_dict())) == [*lines, "3.25-3.75 s: dark"]
    backwards = (VideoRef(path="a.mp4", start_s=2.0, end_s=4.0), VideoRef(path="a.mp4", end_s=2.0))
    ((seen,),) = seen_clips([group(totals=(1.0,), clips=[random_clip(8, 16, 16)], videos=(in_turn(*backwards),))])
    assert list(shown(seen.to_dict())) == ["0.25-1.75 s: a.mp4 from 2.25 s", "2.25-3.75 s: a.mp4 from 0.25 s"]


def test_several_videos_of_a_prompt_are_several_clips(tmp_path):
    two = group(totals=(1.0,), clips=[random_clip(2, 16, 16), random_clip(3, 24, 16, seed=1)])
    with Tracker(tmp_path, Console(), completions_every=1, completions_groups=1, hang_s=60) as tracker:
        tracker.completions(1, [two], "training")
    (row,) = read_lines(tmp_path / "completions.jsonl")
    sizes = [av.open(str(tmp_path / clip["path"])).streams.video[0].codec_context.height for clip in row["clips"]]
    assert sizes == [16, 24]


def test_an_image_is_kept_as_it_was_and_stands_on_the_page(tmp_path):
    image, video = random_image(15, 21), random_clip(2, 16, 16)
    files = {"videos": (VideoRef(path="v.mp4"),), "images": (ImageRef(path="/x/a.jpg"),)}
    both = group(totals=(1.0,), clips=[image, video], **files)
    with Tracker(tmp_path, Console(), completions_every=1, completions_groups=1, hang_s=60) as tracker:
        tracker.completions(1, [both], "training")
    (row,) = read_lines(tmp_path / "completions.jsonl")
    first, second = row["clips"]
    assert is_image(first) and not is_image(second) and list(shown(first)) == ["a.jpg"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / first["path"])), image.frames[0])
    write_page([row], tmp_path / "page.html", run_dir=tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img src='data:image/png;base64,") == page.count("<video") == 1
    assert "<figcaption>a.jpg</figcaption>" in page


def test_the_first_rank_shows_what_only_another_one_has_decoded(tmp_path):
    on_ranks(_two_groups, tmp_path)
    rows = read_lines(tmp_path / "completions.jsonl")
    assert [row["uid"] for row in rows] == ["of rank 0", "of rank 1"]
    assert [len(list((tmp_path / clip["path"]).parent.iterdir())) for row in rows for clip in row["clips"]] == [2, 2]


def _two_groups(folder: Path) -> None:
    rank = collectives.rank()
    own = group(totals=(1.0,), clips=[random_clip(2, 16, 16, seed=rank)], uid=f"of rank {rank}")
    groups = collectives.gather_by_index({collectives.rank(): own}, lighten=lambda each: each.light())
    tables = {"completions_every": 1, "completions_groups": 2, "hang_s": 60}
    tracker = Tracker(folder, Console(), **tables) if collectives.is_rank_0() else SilentTracker(folder, **tables)
    with tracker:
        tracker.step(1, StepResult(metrics={}, groups=tuple(groups)))
