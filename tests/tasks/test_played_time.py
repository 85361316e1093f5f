"""From real files through the tasks to tokens: the times of a clip are played time, and the model is told those.

The files show 10 frames a second, frame k in grey level 5 k: a.mp4 lasts 4 s, b.mp4 3 s. Clips have 2 frames a second,
at most 8. All numbers are worked out by hand from the rule in vidbridge/media/montage.py.
"""

import json
import re

import numpy as np
import pytest

from tests.backbones.families import write_family
from tests.media.videos import FPS, LEVELS, counting
from vidbridge.data.formats.annotated_videos import Raw
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.origins import origins
from vidbridge.policy.processor import Processor
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.rows import Row, TaskRows
from vidbridge.tasks.temporal_order import TemporalOrder
from vidbridge.types import Effect, Montage, Segment, VideoRef

FRAMES = FrameBudget(fps=2.0, max_frames=8, min_pixels=64, max_pixels=1024, multiple=8)
ANNOTATED = [
    {"video": "a.mp4", "caption": "All of it."},
    {"video": "a.mp4", "caption": "A part.", "start_s": 1.0, "end_s": 3.0},
    {"video": "a.mp4", "events": [[0.5, 1.5, "one"], [1.5, 2.5, "two"], [3.0, 4.0, "three"]]},
    {"video": "a.mp4", "question": "what?", "answer": "it"},
    {"video": "b.mp4", "question": "what?", "answer": "it"},
]
FOUR_S = [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
SEVEN_S = [0.4375, 1.3125, 2.1875, 3.0625, 3.9375, 4.8125, 5.6875, 6.5625]  # the middles of 8 slices of 0.875 s
FIVE_S = [0.3125, 0.9375, 1.5625, 2.1875, 2.8125, 3.4375, 4.0625, 4.6875]  # of 0.625 s

# name -> the times of the frames; of each pair, the mean in words, and positions after the first: two a second.
TOLD = {
    # as it is
    "whole": (FOUR_S, ["0.5", "1.5", "2.5", "3.5"], [0, 2, 4, 6]),
    # 1 s to 3 s of the file play from 0 to 2
    "part": (FOUR_S[:4], ["0.5", "1.5"], [0, 2]),
    # the times of the whole
    "dark": (FOUR_S, ["0.5", "1.5", "2.5", "3.5"], [0, 2, 4, 6]),
    # 4 s and 3 s in pieces; grids 1.75 s apart: 0, 3.5, 7, 10.5, cut
    "mixed": (SEVEN_S, ["0.9", "2.6", "4.4", "6.1"], [0, 3, 7, 10]),
    # three events of a second, in whatever order, without what lies between them
    "shuffled": (FOUR_S[:6], ["0.5", "1.5", "2.5"], [0, 2, 4]),
    # 0 to 1 s and 2 to 4 s of the file: 3 s
    "cut": (FOUR_S[:6], ["0.5", "1.5", "2.5"], [0, 2, 4]),
    # 0 to 1 s, then 2 to 4 s at half speed: 5 s; means 0.625, 1.875, 3.125, 4.375; grids 1.25 s apart: 0, 2.5, 5, 7.5
    "slow": (FIVE_S, ["0.6", "1.9", "3.1", "4.4"], [0, 2, 5, 7]),
    # from 2 s on backwards: what is shown, not when
    "reversed": (FOUR_S, ["0.5", "1.5", "2.5", "3.5"], [0, 2, 4, 6]),
}
MONTAGES = {
    "cut": [Segment(source=0, start_s=0.0, end_s=1.0), Segment(source=0, start_s=2.0, end_s=4.0)],
    "slow": [Segment(source=0, start_s=0.0, end_s=1.0), Segment(source=0, start_s=2.0, end_s=4.0, speed=0.5)],
    "reversed": [],
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """name -> a task and a sample of it that shows such an edit of the files."""
    folder = tmp_path_factory.mktemp("videos")
    counting(folder / "a.mp4", 40)
    counting(folder / "b.mp4", 30)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANNOTATED))
    data = Raw(root=str(folder), annotations=[str(folder / "rows.jsonl")], workers=0)

    def first(task, answer):
        rows = data.filled(TaskRows(task=task, frames=FRAMES, read=data.reader), "train")
        passes = range(20 * len(rows))  # each draws another event to hide
        return next((rows, sample) for sample in map(rows.sample, passes) if sample.answer == answer)

    made = {"whole": first(Caption(), "All of it."), "part": first(Caption(), "A part.")}
    made["dark"] = first(DarkEventInfer(), "two")
    made["mixed"] = first(MixVidQA(), "it")
    made["shuffled"] = first(TemporalOrder(), "First one, then two, finally three.")
    for name, segments in MONTAGES.items():
        effects = (Effect(name="reverse", start_s=2.0),) if name == "reversed" else ()
        shown = Montage(sources=(VideoRef(path="a.mp4"),), segments=tuple(segments), effects=effects)
        solution = "<answer>it</answer>"
        row = Row(uid=name, problem="?", solution=solution, video="a.mp4", problem_type="caption", shown=shown)
        rows = TaskRows(task=Caption(), rows=[row], frames=FRAMES, read=data.reader)
        made[name] = rows, rows.sample(0)
    return made


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    families = ("qwen2_5_vl", "qwen3_vl")
    folders = {name: write_family(name, tmp_path_factory.mktemp(name)) for name in families}
    return {name: Processor.from_folder(folder, FRAMES).sized() for name, folder in folders.items()}


@pytest.mark.parametrize("edit", TOLD)
def test_a_clip_has_played_time_and_the_model_is_told_it(samples, processors, edit):
    task, sample = samples[edit]
    times_s, in_words, positions = TOLD[edit]
    prompt = task.prompt(sample)
    (clip,) = prompt.clips
    assert clip.times_s.tolist() == pytest.approx(times_s, abs=1e-9)

    told = processors["qwen3_vl"]
    spelt = told.tokenizer.decode(told.encode(prompt).input_ids)
    assert re.findall(r"<([\d.]+) seconds>", spelt) == in_words

    placed = processors["qwen2_5_vl"]
    encoded = placed.encode(prompt)
    time = encoded.position_ids[0, placed.is_vision(encoded.input_ids)].reshape(len(positions), -1)
    assert (time == time[:, :1]).all() and (time[:, 0] - time[0, 0]).tolist() == positions


@pytest.mark.parametrize("edit", TOLD)
def test_what_is_on_show_at_a_time_is_where_it_is_said_to_be_from(samples, edit):
    task, sample = samples[edit]
    (clip,) = task.prompt(sample).clips
    for pixels, origin in zip(clip.frames, origins(sample, 0, clip.times_s).frames, strict=True):
        number = 0 if origin is None else np.floor(origin[1] * FPS + 1e-6)
        assert abs(pixels.mean() / LEVELS - number) < 0.6


def test_the_edits_are_what_they_are_called(samples):
    """At which second of a.mp4 each frame is from, by hand."""
    seconds = {}
    for name, (task, sample) in samples.items():
        (clip,) = task.prompt(sample).clips
        seconds[name] = [each and each[1] for each in origins(sample, 0, clip.times_s).frames]
    assert seconds["whole"] == FOUR_S
    assert seconds["part"] == [1.25, 1.75, 2.25, 2.75]
    assert seconds["dark"] == [0.25, 0.75, 1.25, None, None, 2.75, 3.25, 3.75]  # 1.5 to 2.5 s
    starts = [(0.5, 1.5, 3.0)[event] for event in samples["shuffled"][1].meta["shown"]]
    assert seconds["shuffled"] == [start_s + into_s for start_s in starts for into_s in (0.25, 0.75)]
    assert seconds["cut"] == [0.25, 0.75, 2.25, 2.75, 3.25, 3.75]
    # 1.5625 s is 0.5625 s into a stretch at half speed: 2.28125 s
    assert seconds["slow"] == [0.3125, 0.9375, 2.28125, 2.59375, 2.90625, 3.21875, 3.53125, 3.84375]
    assert seconds["reversed"] == [0.25, 0.75, 1.25, 1.75, 3.75, 3.25, 2.75, 2.25]
    assert sorted({origin[0] for origin in origins(samples["mixed"][1], 0, np.array(SEVEN_S)).frames}) == [0, 1]
