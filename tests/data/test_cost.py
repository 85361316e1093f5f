"""The estimate is the length of the prompt that is then made, but for the chat template."""

import pytest

from tests.conftest import SHAPES_FRAMES
from vidbridge.data.cost import estimated_tokens, header
from vidbridge.policy.processor import Processor


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
