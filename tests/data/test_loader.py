"""What cannot be used: replaced by the next sample of its task, on record, and at some point too much."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import SHAPES_FRAMES
from tests.ranks import on_ranks
from vidbridge.data.loader import BadSamples, Loader
from vidbridge.errors import DataError, VideoError
from vidbridge.media.decode import decode
from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives


@pytest.fixture(scope="module")
def processor(untrained_folder):
    return Processor.from_folder(untrained_folder, SHAPES_FRAMES, max_prompt_tokens=1024)


def broken(task, *indices):
    """The task with videos of these rows that cannot be read."""
    paths = {task.rows[index].video for index in indices}

    def read(video, frames):
        if video.path in paths:
            raise VideoError(video.path, "damaged", "is damaged at 1.00 s")
        return decode(video, frames)

    return replace(task, read=read)


def uids(loaded):
    return [each.sample.uid for each in loaded.values()]


def load(loader, samples, **options):
    return loader.load(dict(enumerate(samples)), **options)


def test_in_the_place_of_a_bad_sample_comes_the_next_one_of_its_task(shapes_tasks, processor, tmp_path):
    task = broken(shapes_tasks["qa"], 3, 4, 11)
    bad = BadSamples(tmp_path / "bad.jsonl", max_frac=0.5)
    loader = Loader({"qa": task, "caption": shapes_tasks["caption"]}, processor, bad)
    asked = [task.sample(2), task.sample(3), shapes_tasks["caption"].sample(3), task.sample(11)]
    loaded = load(loader, asked)
    assert uids(loaded) == ["qa/train/2", "qa/train/5", "caption/train/3", "qa/train/0"]
    sample, prompt = loaded[1].sample, loaded[1].prompt
    # question, video and tokens are those of one row
    assert sample.question == task.sample(5).question and sample.videos == task.sample(5).videos
    assert np.array_equal(prompt.clips[0].frames, task.prompt(task.sample(5)).clips[0].frames)
    assert prompt.messages == task.prompt(task.sample(5)).messages
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["uid"], line["reason"]) for line in lines] == [
        ("qa/train/3", "damaged"),
        ("qa/train/4", "damaged"),
        ("qa/train/11", "damaged"),
    ]
    assert task.rows[3].video in lines[0]["detail"]
    assert [each.num_bad for each in loaded.values()] == [0, 2, 0, 1] and bad.num_asked == 7
    assert loader.report(loaded.values()) == {"data/bad": 3.0} and (bad.num_bad, bad.num_asked) == (3, 7)


def test_a_bad_video_is_not_tried_again_not_even_by_the_next_run(shapes_tasks, processor, tmp_path):
    task = broken(shapes_tasks["qa"], 3)
    for time in range(2):
        tried = []
        spy = replace(task, read=lambda v, f: tried.append(v.path) or task.read(v, f))
        loader = Loader({"qa": spy}, processor, BadSamples(tmp_path / "bad.jsonl", max_frac=0.5))
        for _ in range(3):
            assert uids(load(loader, [spy.sample(3)])) == ["qa/train/4"]
        assert tried.count(task.rows[3].video) == (1 if time == 0 else 0)
        assert loader.bad.num_bad == 3
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1


def test_too_many_stop_the_run(shapes_tasks, processor, tmp_path):
    """Of the first hundred at most two: the third is one too many, however few were asked for."""
    task = broken(shapes_tasks["qa"], 0, 1, 2)
    loader = Loader({"qa": task}, processor, BadSamples(tmp_path / "bad.jsonl", max_frac=0.02))
    with pytest.raises(DataError, match="3 of 3 samples .* data.max_bad_frac=0.02 .*qa/train/2: .*bad.jsonl"):
        load(loader, [task.sample(0)])


def test_without_an_allowance_the_first_one_stops_the_run_by_its_name(shapes_tasks, processor):
    task = broken(shapes_tasks["qa"], 1)
    with pytest.raises(DataError, match="^qa/train/1: .*is damaged at 1.00 s"):
        load(Loader({"qa": task}, processor), [task.sample(0), task.sample(1)])


def test_a_task_without_one_good_row_is_an_error_not_a_loop(shapes_tasks, processor):
    task = broken(shapes_tasks["qa"], *range(12))
    with pytest.raises(DataError, match="not one of the 12 rows of qa"):
        load(Loader({"qa": task}, processor, BadSamples(max_frac=0.99)), [task.sample(0)])


def test_a_prompt_that_is_too_long_is_bad_too(shapes_tasks, untrained_folder):
    task = shapes_tasks["mix_vid_qa"]
    whole = Processor.from_folder(untrained_folder, SHAPES_FRAMES, max_prompt_tokens=1024)
    lengths = [len(whole.encode(task.prompt(task.sample(index))).input_ids) for index in range(12)]
    too_long = [length > min(lengths) for length in lengths]
    assert any(too_long)
    processor = Processor.from_folder(untrained_folder, SHAPES_FRAMES, max_prompt_tokens=min(lengths))
    loader = Loader({"mix_vid_qa": task}, processor, BadSamples(max_frac=0.5))
    replaced = load(loader, [task.sample(too_long.index(True))])
    assert len(replaced[0].encoded.input_ids) == min(lengths)
    left_out = load(loader, map(task.sample, range(12)), replace=False)
    assert list(left_out) == [place for place in range(12) if not too_long[place]]


def test_for_an_evaluation_bad_samples_are_left_out(shapes_tasks, processor):
    task = broken(shapes_tasks["qa"], 1)
    loader = Loader({"qa": task}, processor, BadSamples(max_frac=0.5))
    for _ in range(2):
        assert uids(load(loader, map(task.sample, range(3)), replace=False)) == ["qa/train/0", "qa/train/2"]


def explore(tasks, folder, out):
    """On each rank: what it loads of a batch in which three videos are bad, and what it knows then."""
    task = broken(tasks["qa"], 1, 2, 5)
    processor = Processor.from_folder(folder, SHAPES_FRAMES, max_prompt_tokens=1024)
    loader = Loader({"qa": task}, processor, BadSamples(out / "bad.jsonl", max_frac=0.5))
    loaded = loader.load(loader.own([task.sample(index) for index in range(7)]))
    seen = {"own": {place: each.sample.uid for place, each in loaded.items()}, "before": loader.bad.num_bad}
    seen |= {"metrics": loader.report(loaded.values()), "bad": loader.bad.num_bad, "asked": loader.bad.num_asked}
    strict = BadSamples(max_frac=0.02)
    for index in range(2 - collectives.rank()):  # two here, one there: the third is one too many, and nobody met three
        strict.passes(task.sample(index))
        strict.add(task.sample(index), ValueError(f"bad on rank {collectives.rank()}"))
    with pytest.raises(DataError) as caught:
        strict.share()
    seen["error"] = str(caught.value)
    (out / f"rank{collectives.rank()}.json").write_text(json.dumps(seen))


def test_ranks_end_with_the_same_samples_and_know_the_same_of_the_bad_ones(shapes_tasks, untrained_folder, tmp_path):
    on_ranks(explore, {"qa": shapes_tasks["qa"]}, untrained_folder, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["own"].keys().isdisjoint(second["own"]) and first["before"] + second["before"] == 4
    together = {int(place): uid for place, uid in (first["own"] | second["own"]).items()}
    # row 1 is asked for, then 2 and 3; row 2, then 3; row 5, then 6
    expected = [0, 3, 3, 3, 4, 6, 6]
    assert together == {place: f"qa/train/{row}" for place, row in enumerate(expected)}
    for seen in (first, second):
        assert seen["metrics"] == {"data/bad": 4.0} and (seen["bad"], seen["asked"]) == (4, 11)
    lines = [json.loads(line)["uid"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["qa/train/1", "qa/train/2", "qa/train/5"]
    assert first["error"] == second["error"]
    assert first["error"].startswith("3 of 3 samples could not be used, more than data.max_bad_frac=0.02 allows")
