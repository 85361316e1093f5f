"""check, preview and build on data that people would bring."""

import errno
import html
import json
import re
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHAPES_FRAMES, random_clip
from tests.data.exporting import export_annotations, export_released
from tests.media.videos import counting
from vidbridge.data.formats.annotated_videos import Raw
from vidbridge.data.formats.released_jsonl import VidbridgeR1
from vidbridge.data.tools.check import check
from vidbridge.data.tools.difficulty import filter_rows
from vidbridge.data.tools.job import Job, alone
from vidbridge.data.tools.materialise import materialise
from vidbridge.data.tools.preview import COLOURS, DARK, contact_sheet, preview
from vidbridge.errors import DataError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.origins import Origins, origins
from vidbridge.policy.processor import Processor
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows
from vidbridge.text.prompts import PromptTemplate
from vidbridge.types import Group, RewardBreakdown

ALL = {"held_out_frac": 1e-9}
BUDGET = FrameBudget(fps=2.0, max_frames=64, min_pixels=2304, max_pixels=2304, multiple=16)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    files = export_annotations(folder, 10)
    return Raw(
        root=str(folder / "videos"), annotations=[str(files[0]), str(files[2])], workers=0, held_out_frac=0.2
    )


@pytest.fixture(scope="module")
def processor(untrained_folder):
    return Processor.from_folder(untrained_folder, SHAPES_FRAMES).sized()


def job(dataset, tasks, **options):
    return Job(dataset=dataset, tasks=tasks, **options)


@pytest.fixture(scope="module")
def tasks(raw):
    return {task.name: TaskRows(task=task, frames=BUDGET, read=raw.reader) for task in (DarkEventInfer(), MixVidQA())}


def test_what_is_written_shows_what_was_made_on_the_fly(raw, tasks, tmp_path):
    materialise(job(raw, tasks, folder=tmp_path, number=3), fps=64)
    written = VidbridgeR1(root=str(tmp_path), files={"train": str(tmp_path / "train.jsonl")}, workers=0, **ALL)
    for name, task in tasks.items():
        fly = raw.filled(task, "train")
        filed = written.filled(replace(task, read=written.reader), "train")
        assert len(filed) == min(3, len(fly))
        for index in range(len(filed)):
            one, two = fly.sample(index), filed.sample(index)
            assert (one.question, one.answer, one.options) == (two.question, two.answer, two.options)
            (seen,), (shown,) = fly.prompt(one).clips, filed.prompt(two).clips
            assert seen.frames.shape == shown.frames.shape
            # the same pictures, coded once more; at a cut one frame may fall to the other side
            apart = np.abs(seen.frames.astype(int) - shown.frames).mean(axis=(1, 2, 3))
            assert (apart > 3).sum() <= (0 if name == "dark_event_infer" else 1), (name, apart)
            froms = [origins(each, 0, clip.times_s).frames for each, clip in ((one, seen), (two, shown))]
            assert froms[0].count(None) == froms[1].count(None)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    made_at = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(manifest) == len(made_at) + len(list(tmp_path.glob("*.jsonl")))
    materialise(job(raw, tasks, folder=tmp_path, number=3), fps=64)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == made_at
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_contact_sheets_frame_each_source_in_its_colour(raw, tasks, processor, tmp_path):
    preview(job(raw, tasks, folder=tmp_path, number=1), processor)
    page = (tmp_path / "preview.html").read_text()
    assert page.count("<img") == len(list(tmp_path.glob("*.png"))) >= 2
    sheet = np.asarray(Image.open(tmp_path / "train_mix_vid_qa_0.png"))
    task = raw.filled(tasks["mix_vid_qa"], "train")
    sample = task.sample(0)
    sources = [source for source, _ in origins(sample, 0, task.prompt(sample).clips[0].times_s).frames]
    assert set(sources) == {0, 1}
    cell = 96 + 2 * 4
    for index, source in enumerate(sources[:12]):
        assert tuple(sheet[1, index * cell + 1]) == COLOURS[source]
    dark = raw.filled(tasks["dark_event_infer"], "train")
    times_s = dark.prompt(dark.sample(0)).clips[0].times_s
    assert origins(dark.sample(0), 0, times_s).frames.count(None) == 2


def test_a_contact_sheet_of_any_number_of_sources():
    """Eight frames of 24 x 32 pixels, each from a source of its own but one, which is dark."""
    froms = (*((source, 0.25) for source in range(7)), None)
    shown = Origins(sources=tuple(map(str, range(7))), frames=froms)
    sheet = np.asarray(contact_sheet(random_clip(8, 24, 32), shown))
    framed = [tuple(sheet[1, index * (128 + 2 * 4) + 1]) for index in range(8)]
    # the seventh source has the colour of the first again, the dark has its own
    assert framed == [*COLOURS, COLOURS[0], DARK] and len(set(framed)) == 7


@pytest.mark.parametrize("has_model", [True, False])
def test_a_preview_shows_the_whole_prompt(raw, tasks, processor, has_model, tmp_path):
    template = PromptTemplate(text="1 < 2 & {question}", system="Think in <think> </think>.")
    task = replace(tasks["dark_event_infer"], template=template)
    preview(job(raw, {task.name: task}, folder=tmp_path, number=1), processor if has_model else None)
    sample = raw.filled(task, "train").sample(0)
    page = (tmp_path / "preview.html").read_text()
    assert html.unescape(re.findall("<pre>(.*?)</pre>", page, re.DOTALL)[0]) == (
        "<|im_start|>system\nThink in <think> </think>.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
        f"<|vision_end|>1 < 2 & {sample.question}<|im_end|>\n<|im_start|>assistant\n"
        if has_model
        else f"[system]\nThink in <think> </think>.\n[user]\n[video]\n1 < 2 & {sample.question}"
    )


def test_check_lists_rows_videos_and_overlaps_in_one_pass(processor, tmp_path):
    path = export_released(tmp_path, [Caption()], 6)
    lines = path.read_text().splitlines()
    (tmp_path / "test.jsonl").write_text(lines[0] + "\n")
    videos = [json.loads(line)["video"] for line in lines]
    (tmp_path / "videos" / videos[3]).write_text("no video")
    other = lines[0].replace('"caption"', '"Caption"')
    path.write_text("\n".join([*lines, lines[1], "{", '{"problem": "x"}', other]) + "\n")
    data = VidbridgeR1(
        root=str(tmp_path / "videos"),
        files={"train": str(path), "test": str(tmp_path / "test.jsonl")},
        workers=2,
        held_out_frac=1e-9,
        max_bad_frac=0.05,
    )
    task = TaskRows(task=Caption(), frames=BUDGET, read=data.reader)
    with pytest.raises(DataError, match="training would be refused: 4 problems"):
        check(job(data, {"caption": task}, folder=tmp_path), processor, strict=False)
    summary = json.loads((tmp_path / "check.json").read_text())
    told = (tmp_path / "problems.txt").read_text().splitlines()
    assert summary == {
        "rows": {"train/caption": 7, "test/caption": 1},
        "without_rows": {"val/caption": summary["without_rows"]["val/caption"]},
        "rows_of_no_task": {"Caption": 1},
        "videos": 6,
        "images": 0,
        "unreadable": 1,
        "unusable_samples": 1,
        "hours": summary["hours"],
        "prompt_tokens": {"caption": summary["prompt_tokens"]["caption"]},
        "repeated_rows": 2,  # line 7 repeats line 2, the test row repeats line 1
        "problems": 4,
    }
    assert [f"{path}:{number}: " in line for line, number in zip(told, (8, 9))] == [True, True]
    assert "not_a_video" in told[2] and told[3] == f"{videos[0]}: is in test and train"
    assert (tmp_path / "check.png").stat().st_size > 5000
    with pytest.raises(DataError, match="4 problems"):
        check(job(data, {"caption": task}, folder=tmp_path), processor, strict=True)
    with pytest.raises(DataError, match="1 of 8 samples cannot be used.* a run would stop"):
        strictly = replace(data, skip_bad_rows=True, max_bad_frac=0.0)
        check(job(strictly, {"caption": task}, folder=tmp_path), processor, strict=False)


def test_check_reads_the_frames_that_samples_show(processor, tmp_path):
    """The header is good, and the pictures behind it are gone."""
    for name in ("a.mp4", "b.mp4"):
        counting(tmp_path / name)
    content = bytearray((tmp_path / "b.mp4").read_bytes())
    pictures = content.index(b"mdat") + 4
    end = pictures - 8 + int.from_bytes(content[pictures - 8 : pictures - 4])
    half = (pictures + end) // 2
    content[half:end] = bytes(end - half)
    (tmp_path / "b.mp4").write_bytes(content)
    rows = [{"video": name, "uid": name, "caption": "one"} for name in ("a.mp4", "b.mp4")]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = Raw(root=str(tmp_path), annotations=[str(tmp_path / "known.jsonl")], workers=0, held_out_frac=1e-9)
    task = TaskRows(task=Caption(), frames=BUDGET, read=data.reader)
    with pytest.raises(DataError, match="1 of 2 samples cannot be used"):
        check(job(data, {"caption": task}, folder=tmp_path), processor, strict=False)
    assert "b.mp4: " in (tmp_path / "problems.txt").read_text()


def test_check_finds_a_prompt_that_is_too_long(processor, tmp_path):
    """As training does, which replaces the row, or stops."""
    counting(tmp_path / "a.mp4")
    questions = ["What?", " ".join(["what"] * 2000)]
    rows = [
        {"video": "a.mp4", "uid": f"row {n}", "question": question, "answer": "a cup", "options": ["a cup", "a bowl"]}
        for n, question in enumerate(questions)
    ]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = Raw(root=str(tmp_path), annotations=[str(tmp_path / "known.jsonl")], workers=0, held_out_frac=1e-9)
    task = TaskRows(task=QA(), frames=BUDGET, read=data.reader)
    with pytest.raises(DataError, match="1 of 2 samples cannot be used"):
        check(job(data, {"qa": task}, folder=tmp_path), replace(processor, max_prompt_tokens=1000), strict=False)
    assert "max_prompt_tokens=" in (tmp_path / "problems.txt").read_text()


def graded(task, scores):
    """Answers to the samples of a task that earn what ``scores`` says, by row."""
    asked = []

    def answer(asked_task, samples, advance):
        asked.extend(samples)
        for index, sample in samples.items():
            rewards = tuple(
                RewardBreakdown(
                    total=2 * each,
                    terms={"event_recall": each, "event_precision": each} if task.name == "caption" else {},
                    gates={"format": 1.0},
                )
                for each in scores[index]
            )
            yield [Group(sample=sample, prompt=None, encoded=None, completions=(), rewards=rewards)]

    return answer, asked


@pytest.mark.parametrize(
    ("task", "scores", "kept"),
    [
        (QA(), [[1, 1, 1], [1, 0, 1], [0, 0, 0], []], [1, 2]),  # too easy goes, too hard stays, unscored goes
        (Caption(), [[0.5, 0.6, 0.7], [0.5, 0.6, 0.71], [1, 1, 1], [0, 1, 0]], [1, 3]),  # range below 0.2 goes
    ],
)
def test_the_filter_keeps_what_can_be_learnt_from_and_goes_on_where_it_was(task, scores, kept, tmp_path):
    path = export_released(tmp_path, [task], 4, prefix="/elsewhere/")
    settings = {"root": str(tmp_path / "videos"), "video_prefix": "/elsewhere/", "workers": 0, **ALL}
    data = VidbridgeR1(files={"train": str(path)}, **settings)
    (tmp_path / "out").mkdir()
    work = job(data, {task.name: TaskRows(task=task, frames=BUDGET, read=data.reader)}, folder=tmp_path / "out")
    answer, asked = graded(task, scores)
    for again in range(2):
        filter_rows(work, answer, lambda name: 2.0, spread="range", threshold=0.2)
        # the second time only what could not be scored
        assert asked == ([0, 1, 2, 3] if not again else [0, 1, 2, 3, *(row for row in range(4) if not scores[row])])
        left = VidbridgeR1(files={"train": str(tmp_path / "out" / "train.jsonl")}, **settings)
        rows = left.rows(task, "train")
        whole = data.rows(task, "train")
        assert [row.uid for row in rows] == [whole[row].uid for row in kept]
        assert [(row.video, row.problem, row.options, row.answer) for row in rows] == [
            (row.video, row.problem, row.options, row.answer) for row in (whole[each] for each in kept)
        ]
    summary = json.loads((tmp_path / "out" / "filter.json").read_text())
    unscored = sum(not each for each in scores)
    assert summary == {f"train/{task.name}": {"rows": 4, "kept": 2, "unscored": unscored}}


def test_what_is_drawn_anew_each_time_is_not_filtered(raw, tasks, tmp_path):
    with pytest.raises(DataError, match="build_data.py build makes files"):
        filter_rows(job(raw, tasks, folder=tmp_path), None, None, spread="range", threshold=0.2)


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    with alone(tmp_path), pytest.raises(DataError, match="another command works there"):
        with alone(tmp_path):
            pass
    with alone(tmp_path):
        pass


def test_a_full_disk_is_named_and_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(DataError, match="the disk is full .*resume=auto"), alone(tmp_path):
        raise av.error.OSError(errno.ENOSPC, "No space left on device", "a.mp4")
    with pytest.raises(PermissionError), alone(tmp_path):
        raise PermissionError(errno.EACCES, "no")
