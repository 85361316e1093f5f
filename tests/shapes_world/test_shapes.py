"""The embedded data set as files: real mp4s, splits that share nothing, text that tells nothing."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from vidbridge.data.rows import write_rows
from vidbridge.errors import DataError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.video_file import VideoFile
from vidbridge.shapes_world import shapes
from vidbridge.shapes_world.language import COLOURS, KINDS, LASTING, SHAPES
from vidbridge.shapes_world.shapes import SPLITS, Shapes, draw_sources, split_of
from vidbridge.shapes_world.world import draw_scene
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows
from vidbridge.tasks.temporal_order import TemporalOrder
from vidbridge.types import Effect

BUDGET = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304)
NUM = {"train": 12, "val": 6, "test": 6}
TASKS = [QA(), Caption(), DarkEventInfer(), MixVidQA(), TemporalOrder()]
GOLDEN = {
    (1, "qa"): ["b66d5f6f491b", "f10a3654baf2", "4917c6e7aec4"],
    (1, "caption"): ["9b612864ffdc", "49ee1f881c63", "6a0737739a61"],
    (1, "dark_event_infer"): ["c26335facf7e", "62dfe86f7afe", "46dae79fd26f"],
    (1, "mix_vid_qa"): ["a4cd3ddbfd35", "4f682961c3ab", "11ec6c2771fa"],
    (1, "temporal_order"): ["269a83c5c3d5", "a24edb39c92c", "1f3077ef407a"],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Shapes(root=str(tmp_path_factory.mktemp("shapes")), seed=3, num_rows=NUM)


def test_rows_are_made_once_and_are_the_same_again(dataset, tmp_path):
    rows = dataset.rows(QA(), "train")
    assert len(rows) == 12 and {row.problem_type for row in rows} == {"MCQA"}
    made_at = {row.video: Path(row.video).stat().st_mtime_ns for row in rows}
    assert dataset.rows(QA(), "train") == rows
    assert {row.video: Path(row.video).stat().st_mtime_ns for row in rows} == made_at
    elsewhere = Shapes(root=str(tmp_path), seed=3, num_rows=NUM).rows(QA(), "train")
    assert [row.problem for row in elsewhere] == [row.problem for row in rows]
    for one, two in zip(rows, elsewhere):
        assert Path(one.video).read_bytes() == Path(two.video).read_bytes()


def test_another_seed_or_setting_makes_other_rows(dataset):
    other = Shapes(root=dataset.root, seed=4, num_rows=NUM)
    assert [r.solution for r in other.rows(Caption(), "val")] != [r.solution for r in dataset.rows(Caption(), "val")]
    quick, slow = MixVidQA(piece_s=(0.5, 1.0)), MixVidQA()
    assert dataset.rows(quick, "val")[0].video != dataset.rows(slow, "val")[0].video


def test_a_broken_generation_leaves_nothing_and_starts_again(tmp_path, monkeypatch):
    data = Shapes(root=str(tmp_path), seed=3, num_rows=NUM)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "write_rows", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            data.rows(Caption(), "test")
    assert list(tmp_path.iterdir()) == []
    assert len(data.rows(Caption(), "test")) == 6


def test_of_two_at_once_the_first_to_finish_counts(tmp_path, monkeypatch):
    """The other one finishes just before this one would: its files stay as they are."""
    first, second = (Shapes(root=str(tmp_path), seed=3, num_rows=NUM) for _ in range(2))
    finished = []

    def write_later(rows, path):
        monkeypatch.undo()
        finished.extend(first.rows(Caption(), "test"))
        made_at.update({row.video: Path(row.video).stat().st_mtime_ns for row in finished})
        write_rows(rows, path)

    made_at = {}
    monkeypatch.setattr(shapes, "write_rows", write_later)
    assert second.rows(Caption(), "test") == finished
    assert {video: Path(video).stat().st_mtime_ns for video in made_at} == made_at
    assert len(list(tmp_path.iterdir())) == 1, "nothing half done is left behind"


class Loud(Caption):
    """A task by inheritance that asks in other words."""

    def construct(self, sources, rng):
        draft = super().construct(sources, rng)
        return draft and replace(draft, problem=draft.problem.upper())


def test_a_task_that_asks_otherwise_has_other_files(dataset, monkeypatch):
    """So that whoever changes a task is not shown the rows of before; a changed renderer needs another version."""
    before = dataset._fingerprint(Caption(), "val")
    assert dataset._fingerprint(Caption(), "val") == before
    assert dataset._fingerprint(Loud(), "val") != before
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert dataset._fingerprint(Caption(), "val") != before


def digest_of(row):
    """What a row says, whatever fields it could have beside, and its pictures to dark and light: codecs differ."""
    told = {each.name: getattr(row, each.name) for each in fields(row)} | {"video": Path(row.video).name}
    with VideoFile(row.video) as file:
        frames = np.stack(list(file.frames_at(np.arange(0, file.duration_s, 0.25))))
    small = frames[:, ::4, ::4].astype(float).mean(axis=3)
    digest = hashlib.sha256(repr(sorted((name, value) for name, value in told.items() if value)).encode())
    digest.update((small > 127).tobytes())
    return digest.hexdigest()[:12]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_rows_are_those_of_this_version(task, tmp_path):
    """Three rows of each task. When they change, so must ``shapes.VERSION``; GOLDEN is then what this test prints."""
    rows = Shapes(root=str(tmp_path), seed=0, num_rows={"train": 3}).rows(task, "train")
    assert [digest_of(row) for row in rows] == GOLDEN[shapes.VERSION, task.name]


def test_splits_share_no_scene():
    rng = np.random.default_rng(0)
    split = {scene: split_of(scene) for scene in (draw_scene(rng, 3) for _ in range(3000))}
    shares = Counter(split.values())
    assert {name: round(shares[name] / 3000, 1) for name in SPLITS} == {"train": 0.7, "val": 0.2, "test": 0.2}
    # the same happening with another background or bystander stays in its split
    for scene in list(split)[:50]:
        twin = replace(scene, background=200, bystander=None)
        assert split_of(twin) == split_of(scene)


def test_an_unknown_split_is_named(dataset):
    with pytest.raises(DataError, match="num_rows.dev is not set"):
        dataset.rows(QA(), "dev")
    with pytest.raises(ValueError, match="unknown split dev"):
        Shapes(root="x", seed=0, num_rows={"dev": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rows": {"train": 0}}, "data.num_rows.train must be a whole number of at least 1, got 0"),
        ({"num_rows": {"train": "many"}}, "data.num_rows.train must be a whole number of at least 1, got 'many'"),
        ({"num_rows": {"train": 2.5}}, "data.num_rows.train must be a whole number"),
        ({"num_rows": {"train": None}}, "data.num_rows.train must be a whole number"),
        ({"num_rows": 7}, "data.num_rows must have a number for each split, got 7"),
        ({"workers": 0}, "data.workers must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**{"root": "x", "seed": 0, "num_rows": NUM, **settings})


def test_the_dark_interval_is_black_after_decoding_and_nothing_else_is(dataset):
    task = dataset.filled(TaskRows(task=DarkEventInfer(), frames=BUDGET), "train")
    for index in range(len(task)):
        sample = task.sample(index)
        (clip,) = task.prompt(sample).clips
        start_s, end_s = sample.meta["dark"]
        dark = (clip.times_s >= start_s) & (clip.times_s < end_s)
        assert dark.sum() == 2 and 0 < clip.times_s[dark][0] and clip.times_s[dark][-1] < clip.times_s[-1]
        assert clip.frames[dark].max() <= 8, "black within what the codec rounds"
        assert clip.frames[~dark].reshape((~dark).sum(), -1).mean(axis=1).min() > 150


def test_pieces_take_turns_and_last_what_they_should(dataset):
    task = dataset.filled(TaskRows(task=MixVidQA(), frames=BUDGET), "train")
    for index in range(len(task)):
        sample = task.sample(index)
        pieces = sample.meta["pieces"]
        assert [piece[0] for piece in pieces] == [place % 2 for place in range(len(pieces))], "A B A B"
        assert all(1.499 <= end_s - start_s <= 2.001 for _, start_s, end_s in pieces)
        (clip,) = task.prompt(sample).clips
        total_s = sum(end_s - start_s for _, start_s, end_s in pieces)
        assert len(clip.frames) == pytest.approx(total_s * 2, abs=1)


def test_the_question_names_a_shape_of_one_source_only():
    rng = np.random.default_rng(5)
    for _ in range(50):
        asked, other = draw_sources(rng, "train", 2)[1]
        named = [shape for shape in SHAPES if shape in asked.question.text]
        assert len(named) == 1 and named[0] not in other.caption and len(asked.events) == len(other.events)


def guess_rate(make_row, number):
    """How often the commonest right answer of half the rows, by question, is right on the other half."""
    rows = [make_row(index) for index in range(number)]
    seen = defaultdict(Counter)
    for text, answer, _ in rows[: number // 2]:
        seen[text][answer] += 1
    held_out = rows[number // 2 :]
    hits = [answer == (seen[text].most_common(1) or [(None, 0)])[0][0] for text, answer, _ in held_out]
    return np.mean(hits), np.mean([1 / choices for *_, choices in held_out])


def test_text_alone_answers_at_chance():
    """A table learnt from questions (and places of options) does no better than picking at random."""
    rng = np.random.default_rng(11)

    def qa_by_place(_):
        question = draw_sources(rng, "train", 1)[1][0].question
        return len(question.options), question.letter, len(question.options)

    def qa_by_text(_):
        question = draw_sources(rng, "train", 1)[1][0].question
        words = frozenset(question.options), question.text
        return words, question.answer, len(question.options)

    def qa_by_prior(_):
        """Learns which answers are common, then picks among the options: the answer must not be commoner."""
        question = draw_sources(rng, "train", 1)[1][0].question
        return question.text.split("the ", 1)[1].split(" ", 1)[-1], question.letter, len(question.options)

    def dark(_):
        draft = None
        while draft is None:
            draft = DarkEventInfer().construct(draw_sources(rng, "train", 1)[1], rng)
        return "", draft.answer.split(" ", 2)[-1], sum(family in LASTING for family in KINDS.values())

    def mixed(_):
        draft = MixVidQA().construct(draw_sources(rng, "train", 2)[1], rng)
        choices = len(COLOURS) if draft.answer in COLOURS else len(KINDS)
        return draft.problem.split("the ", 1)[1].split(" ", 1)[-1], draft.answer.split(" ", 2)[-1], choices

    for make_row in (qa_by_place, qa_by_text, qa_by_prior, dark, mixed):
        rate, chance = guess_rate(make_row, 1200)
        # 600 held-out rows: a standard deviation of at most 0.018
        assert rate < chance + 0.065, (make_row.__name__, rate, chance)


def test_a_root_may_be_given_from_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Shapes(root="cache/shapes", seed=1, num_rows={"train": 1})
    task = data.filled(TaskRows(task=Caption(), frames=BUDGET, read=data.reader), "train")
    assert len(task.prompt(task.sample(0)).clips[0].frames) >= 6


class Blink(Caption):
    """Black for less than a frame."""

    name = "blink"

    def construct(self, sources, rng):
        draft = super().construct(sources, rng)
        return draft and replace(draft, effects=(Effect(name="dark", start_s=1.01, end_s=1.02),))


def test_an_effect_that_no_frame_shows_is_told_with_its_row(tmp_path):
    data = Shapes(root=str(tmp_path), seed=1, num_rows={"train": 1})
    with pytest.raises(DataError, match="blink/train/0: no frame between 1.01 s and 1.02 s: dark would change nothing"):
        data.rows(Blink(), "train")
