"""Rows with images, alone and beside a video: annotations, released JSONL, a benchmark; and every refusal."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.videos import corners, counting, grey
from vidbridge.data.formats.annotated_videos import Raw
from vidbridge.data.formats.annotations import read_annotations
from vidbridge.data.formats.benchmark_file import BenchmarkFile
from vidbridge.data.formats.released_jsonl import VidbridgeR1
from vidbridge.data.prompt_length import estimated_tokens
from vidbridge.data.rows import read_rows, write_rows
from vidbridge.data.tools import check, materialise, preview
from vidbridge.data.tools.job import Job
from vidbridge.errors import DataError, NoRows
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.processor import Processor
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import Row, TaskRows
from vidbridge.types import ImageRef

FRAMES = FrameBudget(fps=2.0, max_frames=8, min_pixels=64, max_pixels=1024, multiple=8)
ASKED = {"question": "<image>\nWhich is it?", "options": ["cup", "bowl"], "answer": "bowl"}
ANNOTATED = [
    {"images": ["a.png", "b.jpg"], **ASKED, "question": "<image><image>\nWhich is it?"},
    {"image": "a.png", "caption": "A cup."},
    {"video": "v.mp4", "images": ["b.jpg"], **ASKED, "caption": "It grows.", "events": [[1.0, 2.0, "it grows"]]},
    {"video": "v.mp4", **ASKED, "caption": "It spins.", "events": [[1.0, 2.0, "it spins"]]},
]
SOLUTION = {"solution": "<answer>B</answer>", "problem_type": "MCQA"}
RELEASED = [
    {"problem": "<image>\n<image>\nWhich?\nA. cup\nB. bowl", "images": ["a.png", "b.jpg"], **SOLUTION},
    {"problem": "Which?\nA. cup\nB. bowl", "image": "/theirs/a.png", "video": "v.mp4", **SOLUTION},
    {"problem": "Which?\nA. cup\nB. bowl", "video": "v.mp4", **SOLUTION},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(corners()).save(folder / "a.png")
    Image.fromarray(grey(200, 24, 24)).save(folder / "b.jpg")
    counting(folder / "v.mp4")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:100])
    return folder


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def raw(root, folder, rows, **options):
    return Raw(root=str(root), annotations=[lines(folder / "rows.jsonl", rows)], workers=0, **options)


def filled(data, task, split="train"):
    return data.filled(TaskRows(task=task, frames=FRAMES, read=data.reader), split)


def test_annotations_with_images(root, tmp_path):
    data = raw(root, tmp_path, ANNOTATED)
    task = filled(data, QA())
    images = {tuple(ref.path for ref in task.sample(n).images): task.sample(n) for n in range(len(task))}
    assert set(images) == {("a.png", "b.jpg"), ("b.jpg",), ()}
    assert [len(images[names].videos) for names in (("a.png", "b.jpg"), ("b.jpg",), ())] == [0, 1, 1]
    two = images["a.png", "b.jpg"]
    assert two.uid == "qa/train/rows/1" and two.question == "Which is it?" and two.meta["sources"] == ["a.png"]
    prompt = task.prompt(images["b.jpg",])  # images first
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["image", "video", "text"]
    assert [(clip.is_image, len(clip.frames)) for clip in prompt.clips] == [(True, 1), (False, 8)]
    assert not task.blind_prompt(two).clips and len(task.blind_prompt(two).messages[0]["content"]) == 1
    captions = filled(data, Caption())
    told = {sample.answer: sample.question for sample in map(captions.sample, range(len(captions)))}
    of_video = "Describe the video, event by event."
    assert told == {"A cup.": "Describe what the images show.", "It grows.": of_video, "It spins.": of_video}


def test_proxies_are_made_of_videos_alone(root, tmp_path):
    data = raw(root, tmp_path, ANNOTATED)
    hidden = filled(data, DarkEventInfer())
    assert [hidden.sample(n).answer for n in range(len(hidden))] == ["it spins"]
    with pytest.raises(NoRows, match="no video has what mix_vid_qa needs"):  # one video alone
        data.rows(MixVidQA(), "train", FRAMES)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "a.png", "images": ["b.jpg"], **ASKED}, "fields 'image' and 'images' are the same: keep one"),
        ({"images": [], **ASKED}, "field 'video' is missing, and there is no field 'images'"),
        ({"images": ["a.png", 3], **ASKED}, "field 'images' must be a text that is not empty, found 3"),
        ({"images": {"a": 1}, **ASKED}, "field 'images' must be a text that is not empty, found {'a'"),
        ({"image": "a.png", "caption": "A.", "end_s": 3}, "field 'end_s' is about a video, and there are images alone"),
        ({"image": "a.png", "events": [[0, 1, "x"]]}, "field 'events' is about a video"),
        ({"image": "a.png", **ASKED, "question": "<image><image>\nSo?"}, "has 2 placeholders .* the row has 1 image$"),
        ({"images": ["a.png", "b.jpg"], **ASKED, "question": "Is <image> like <image>?"}, "inside the text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, problem):
    _, problems = read_annotations(Path(lines(tmp_path / "rows.jsonl", [ANNOTATED[1], row])), "")
    assert len(problems) == 1 and re.search(f"rows.jsonl:2: .*{problem}", problems[0]), problems


def test_released_rows_with_images(root, tmp_path):
    data = VidbridgeR1(root=str(root), files={"train": lines(tmp_path / "train.jsonl", RELEASED)}, workers=0)
    rows = data.rows(QA(), "train")
    assert [row.images for row in rows] == [("a.png", "b.jpg"), ("/theirs/a.png",), ()]
    assert [row.video for row in rows] == ["", "v.mp4", "v.mp4"]
    assert {row.problem for row in rows} == {"Which?"}
    theirs = VidbridgeR1(root=str(root), files=data.files, workers=0, video_prefix="/theirs/")
    assert theirs.rows(QA(), "train")[1].images == ("a.png",)


def test_released_rows_of_a_proxy_with_images_are_refused_by_line(root, tmp_path):
    proxy = {"problem": "What?", "solution": "<answer>x</answer>", "problem_type": "DarkEventInfer"}
    path = lines(tmp_path / "train.jsonl", [{**proxy, "video": "v.mp4"}, {**proxy, "image": "a.png"}])
    data = VidbridgeR1(root=str(root), files={"train": path}, workers=0)
    told = f"{path}:2: field 'images': dark_event_infer is made of a video, not of images"
    with pytest.raises(DataError, match=told):
        data.rows(DarkEventInfer(), "train")
    assert len(data.lenient().rows(DarkEventInfer(), "train")) == 1
    assert data.row_problems([DarkEventInfer()]) == [told]


def test_rows_are_written_as_they_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RELEASED))
    rows = read_rows(tmp_path / "rows.jsonl", "MCQA")
    assert rows[0].images == (f"{tmp_path}/a.png", f"{tmp_path}/b.jpg")
    write_rows(rows, tmp_path / "again.jsonl")
    assert read_rows(tmp_path / "again.jsonl", "MCQA") == rows


def benchmark(tmp_path, rows, **options):
    fields = {"prompt": "{question}", "answer": "answer", "id": "{row}", "options": "options", "answer_is": "text"}
    fields |= {"video": "{video}", "images": "images"}
    return BenchmarkFile(file=lines(tmp_path / "b.jsonl", rows), root=str(tmp_path), workers=0, **fields | options)


def test_a_benchmark_with_images(tmp_path):
    rows = [{"images": each, **ASKED} for each in (["a.png"], "a.png")]
    rows += [{"video": "v.mp4", **ASKED}, {"video": "v.mp4", "images": ["a.png"], **ASKED}]
    found = benchmark(tmp_path, rows).rows(QA(), "test")
    assert [(row.images, row.video) for row in found] == [
        (("a.png",), ""), (("a.png",), ""), ((), "v.mp4"), (("a.png",), "v.mp4")
    ]  # fmt: skip
    assert found[0].meta["sources"] == ["a.png"] and found[0].problem == "Which is it?"
    assert len(benchmark(tmp_path, rows[:2], video=None).rows(QA(), "test")) == 2
    with pytest.raises(DataError, match="field 'images': dark_event_infer is made of a video"):
        benchmark(tmp_path, rows[:1], options=None).rows(DarkEventInfer(), "test")
    with pytest.raises(ValueError, match="benchmark.data.video or benchmark.data.images"):
        benchmark(tmp_path, rows, video=None, images=None)


def test_the_length_of_a_prompt_is_known_from_the_header(root, tmp_path, random_qwen_folder):
    """48 x 64 pixels in 1,024: 24 x 32, 3 x 4 tokens; 24 x 24: 9; a cut file has its size, another has none."""
    data = raw(root, tmp_path, [{"images": ["a.png", "b.jpg"], **ASKED, "question": "what?"}])
    task = filled(data, QA())
    processor = Processor.from_folder(random_qwen_folder, FRAMES)
    sample = task.sample(0)
    assert estimated_tokens(sample, task, processor) - estimated_tokens(blind(sample), task, processor) == 12 + 9
    assert int(processor.is_vision(processor.sized().encode(task.prompt(sample)).input_ids).sum()) == 12 + 9
    nowhere = blind(sample, ImageRef(path="nowhere.png"))
    assert estimated_tokens(nowhere, task, processor) == estimated_tokens(blind(sample), task, processor)


def blind(sample, *images):
    return replace(sample, images=images, videos=())


@pytest.fixture
def job(root, tmp_path):
    (tmp_path / "out").mkdir()
    bad = [{"image": "nowhere.png", "caption": "A."}, {"image": "cut.png", "caption": "A."}]
    data = raw(root, tmp_path, [*ANNOTATED, *bad], max_bad_frac=0.5, held_out_frac=0.02)
    tasks = {task.name: TaskRows(task=task, frames=FRAMES, read=data.reader) for task in (QA(), Caption())}
    return Job(dataset=data, tasks=tasks, folder=tmp_path / "out")


def test_check_names_images_by_row_and_line(job, random_qwen_folder):
    check.check(job, Processor.from_folder(random_qwen_folder, FRAMES).sized(), strict=False)
    summary = json.loads((job.folder / check.SUMMARY).read_text())
    assert (summary["videos"], summary["images"], summary["unreadable"], summary["unusable_samples"]) == (1, 4, 2, 2)
    problems = (job.folder / check.PROBLEMS).read_text().splitlines()
    assert len(problems) == 2
    assert "caption/train/rows/5: " in problems[0] and "nowhere.png: no such image file [missing]" in problems[0]
    assert "caption/train/rows/6: " in problems[1] and "cut.png: cannot be decoded" in problems[1]


def test_preview_shows_each_clip(job):
    preview.preview(job, None)
    sheets = {path.name for path in job.folder.glob("*.png")}
    page = (job.folder / preview.PAGE).read_text()
    assert page.count("<img ") == len(sheets) and any(name.endswith("_2.png") for name in sheets)
    assert "[image]\n[image]\nWhich is it?" in page and "[image]\n[video]\nWhich is it?" in page
    assert "nowhere.png: no such image file" in page


def test_build_writes_images_beside_videos_and_they_are_read_as_they_were(job, root):
    materialise.materialise(job, fps=5)
    data = VidbridgeR1(root=str(job.folder), files={"train": str(job.folder / "train.jsonl")}, workers=0)
    before, after = filled(job.dataset, QA()), filled(data, QA())
    assert len(before) == len(after) == 3
    for number in range(3):
        one, two = before.sample(number), after.sample(number)
        assert (one.uid, one.question, len(one.videos)) == (two.uid, two.question, len(two.videos))
        for old, new in zip(one.images, two.images, strict=True):
            assert np.array_equal(before.read(old, FRAMES).frames, after.read(new, FRAMES).frames)
    named = set(json.loads((job.folder / materialise.MANIFEST).read_text()))
    assert {"videos/train/qa/000000_1.png", "videos/train/qa/000000_2.png"} <= named


def test_a_sample_without_anything_to_show_is_none():
    with pytest.raises(DataError, match="neither a video nor an image"):
        Row(uid="a", problem="b", solution="<answer>c</answer>", video="", problem_type="caption")
