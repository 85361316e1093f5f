"""The estimate is the length of the prompt that is then made, but for the chat template."""

from dataclasses import replace

import pytest

from tests.conftest import SHAPES_FRAMES
from vidbridge.data.prompt_length import estimated_tokens, header
from vidbridge.media.reader import VideoReader
from vidbridge.policy.processor import Processor
from vidbridge.types import Montage, Segment, VideoRef


@pytest.fixture(scope="module")
def processor(untrained_folder):
    return Processor.from_folder(untrained_folder, SHAPES_FRAMES, max_prompt_tokens=1024)


def test_it_is_the_real_length_but_for_the_template(shapes_tasks, processor):
    rest, estimates = set(), set()
    for task in shapes_tasks.values():
        for sample in map(task.sample, range(len(task))):
            length = len(processor.encode(task.prompt(sample)).input_ids)
            estimates.add(estimated_tokens(sample, task, processor))
            rest.add(length - estimated_tokens(sample, task, processor))
    assert len(rest) == 1, "the same for all"
    assert len(estimates) > 1 and max(estimates) > 2 * rest.pop(), "and not most of it"


def test_what_is_no_video_costs_nothing_and_raises_nothing(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:9/never.mp4\n")
    for name in ("missing.mp4", "empty.mp4", "list.mp4", "."):
        assert header(str(tmp_path / name)) == (0.0, 0, 0)


def test_parts_of_videos_below_a_folder_are_looked_up_there(shapes_tasks, processor, tmp_path):
    caption = shapes_tasks["caption"]
    folder, name = caption.rows[0].video.rsplit("/", 1)
    task = replace(caption, frames=processor.frames, read=VideoReader(folder))
    whole = estimated_tokens(caption.sample(0), caption, processor)
    outside = replace(caption.sample(0), videos=(VideoRef(path=caption.rows[0].video),))
    elsewhere = replace(caption, frames=processor.frames, read=VideoReader(str(tmp_path)))

    def video_tokens(video):
        return estimated_tokens(replace(caption.sample(0), videos=(video,)), task, processor) - text

    text = estimated_tokens(outside, elsewhere, processor)  # nothing of it is read
    seconds, height, width = header(caption.rows[0].video)
    assert (height, width) == (48, 48) and video_tokens(VideoRef(path=name)) == whole - text > 0
    # 2 frames a second, 2 in a token, 48 / 16 = 3 tokens a side: 9 a second
    three = tuple(Segment(source=0, start_s=start_s, end_s=start_s + 1.0) for start_s in (0.0, 1.0, 0.0))
    assert video_tokens(Montage(sources=(VideoRef(path=name),), segments=three)) == 3 * 9
    slow = Segment(source=0, start_s=0.0, end_s=1.0, speed=0.5)
    assert video_tokens(Montage(sources=(VideoRef(path=name),), segments=(slow,))) == 2 * 9
    assert video_tokens(Montage(sources=(VideoRef(path=name, start_s=seconds - 1.0),))) == 9
    assert video_tokens(VideoRef(path=name, start_s=seconds - 1.0)) == 9
