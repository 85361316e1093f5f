"""What the README says to do with a folder of one's own: generated, trained on, stopped, gone on with, evaluated."""

import json
import os
import signal
import time

import numpy as np
import pytest

from experiments.own_videos import BROKEN, CODECS, NUMBER, make
from tests.composing import config_of
from tests.data.exporting import export_released
from tests.doors import ROOT, Door, run
from vidbridge.build import common
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.runtime.jsonl_log import read_lines, whole_lines
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.types import VideoRef

BROKEN_NAME = f"clip{BROKEN:03d}.mp4"
FEW = ["prompts_per_step=6", "algo.group_size=2", "eval.num_items=2", "eval.num_samples=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    make(folder / "data" / "own")
    return folder


def own_data(folder):
    """D of docs/own_videos.md, and the paths relative, as people give them."""
    text = (ROOT / "docs" / "own_videos.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith('D="data=raw')]
    return line[len('D="') : line.rindex('"')].split()


def test_the_folder_has_every_container_and_a_broken_one(folder):
    names = sorted(path.name for path in (folder / "data" / "own" / "videos").iterdir())
    assert len(names) == NUMBER >= 20 and {os.path.splitext(name)[1] for name in names} == set(CODECS)
    assert BROKEN_NAME in names


@pytest.fixture(scope="module")
def ran(folder):
    """The folder of a run that was stopped by Ctrl-C, gone on with, and its words; default tracking, but offline."""
    arguments = [*own_data(folder), *FEW, "steps=4", "checkpoint.every=1", "track.completions_every=1"]
    arguments += ["hydra.run.dir=run", f"paths.cache={folder}/cache"]
    door = Door(ROOT / "train.py", *arguments, cwd=folder, WANDB_MODE="offline")
    metrics = folder / "run" / "metrics.jsonl"
    while max([line["step"] for line in whole_lines(metrics)[0]], default=0) < 2:
        assert door.process.is_alive(), door.done()
        time.sleep(0.05)
    os.kill(door.process.pid, signal.SIGINT)
    assert door.done().returncode == 130
    done = run(ROOT / "train.py", *arguments, "resume=auto", cwd=folder, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "going on from step_" in done.stdout
    return folder / "run"


@pytest.mark.slow
def test_everything_of_a_run_is_there(ran):
    summary = json.loads((ran / "summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == {"sampled", "greedy"}
    assert [line["step"] for line in read_lines(ran / "metrics.jsonl") if "policy/lr" in line] == [1, 2, 3, 4]
    for name in ("curves.png", "completions.html", "model/config.json", "checkpoints/step_000004"):
        assert (ran / name).exists(), name


@pytest.mark.slow
def test_the_tables_say_once_what_was_seen_and_where_it_is_from(ran):
    text = (ran / "completions.jsonl").read_text()
    assert str(ran.parent) not in text
    rows = read_lines(ran / "completions.jsonl")
    keys = [(row["step"], row["stage"], row["group"]) for row in rows]
    assert len(keys) == len(set(keys)) * 2 - sum(stage == "held_out/greedy" for _, stage, _ in keys)  # two siblings
    assert {(row["step"], row["stage"]) for row in rows} == {
        *((step, "training") for step in (1, 2, 3, 4)),
        *((step, f"held_out/{kind}") for step in (0, 4) for kind in ("sampled", "greedy")),
    }
    hidden, mixed = ([row["clips"][0] for row in rows if row["task"] == t] for t in ("dark_event_infer", "mix_vid_qa"))
    for clip in hidden:
        frames, dark = frames_of(ran, clip), np.array([origin is None for origin in clip["origins"]])
        assert 0 < dark.sum() < len(dark)
        assert frames[dark].max() < 8 and frames[~dark].max(axis=(1, 2, 3)).min() > 100
    for clip in mixed:
        assert len(clip["sources"]) == 2 and {origin[0] for origin in clip["origins"]} == {0, 1}
        frames = frames_of(ran, clip)
        # each frame is that of the file it is said to be of
        for source, name in enumerate(clip["sources"]):
            mine = [number for number, origin in enumerate(clip["origins"]) if origin[0] == source]
            path = ran.parent / "data" / "own" / "videos" / name
            own = shown_at(path, [clip["origins"][number][1] for number in mine])
            assert np.abs(frames[mine].astype(int) - own).mean(axis=(1, 2, 3)).max() < 6


def frames_of(run_dir, clip):
    each_once = FrameBudget(fps=None, max_frames=len(clip["times_s"]), min_pixels=1, max_pixels=1)
    return decode(VideoRef(path=str(run_dir / clip["path"])), each_once).frames


def shown_at(path, times_s):
    """At 48 x 48, one at a time: the slice about each time, of which the only frame is the middle."""
    one = FrameBudget(fps=None, max_frames=1, min_pixels=2304, max_pixels=2304, multiple=16)
    parts = [VideoRef(path=str(path), start_s=time_s - 0.01, end_s=time_s + 0.01) for time_s in times_s]
    return np.stack([decode(part, one).frames[0] for part in parts])


@pytest.mark.slow
def test_the_page_and_wandb_hold_the_clips_and_those_alone_are_kept(ran):
    rows, page = read_lines(ran / "completions.jsonl"), (ran / "completions.html").read_text()
    clips = {clip["path"] for row in rows for clip in row["clips"]}
    assert {f"clips/{path.name}" for path in (ran / "clips").iterdir()} >= clips
    assert page.count("<video") == page.count("src='data:video/mp4;base64,") > 0
    runs = list((ran / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and len({path.name.split("-")[-1] for path in runs}) == 1  # stopped, and gone on with
    tables = {path.parent.name + "/" + path.name.split("_")[0] for path in (ran / "wandb").rglob("*.table.json")}
    assert tables == {"completions/training", "held_out/sampled", "held_out/greedy"}
    kept = {path.read_bytes() for path in (ran / "wandb" / "artifacts").rglob("*") if path.is_file()}
    assert all((ran / clip).read_bytes() in kept for clip in clips)


@pytest.mark.slow
def test_it_is_evaluated_as_it_was(ran, folder):
    cache = f"paths.cache={folder}/cache"
    done = run(ROOT / "evaluate.py", "checkpoint=run", "hydra.run.dir=again", cache, cwd=folder, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    scores = json.loads((folder / "again" / "summary.json").read_text())["scores"]
    assert scores == json.loads((ran / "summary.json").read_text())["after"]
    assert "data:video/mp4" in (folder / "again" / "completions.html").read_text()


@pytest.mark.parametrize("data", ["raw", "vidbridge_r1"])
def test_overfit_means_the_same_two_rows_of_each_task_whatever_the_data(data, folder, tmp_path):
    config = config_of(*overfit(data, folder, tmp_path))
    tasks = common.build_tasks(config, common.build_dataset(config), {"train"}, None)
    assert set(tasks["train"]) == {"qa", "caption", "dark_event_infer", "mix_vid_qa"}
    for task in tasks["train"].values():
        assert len(task) == 2
        first = [(task.sample(index).question, task.sample(index).videos) for index in range(2)]
        assert first[0] != first[1]  # and in the next passes the same event is hidden, the same video mixed in
        assert [(task.sample(index).question, task.sample(index).videos) for index in range(2, 6)] == first * 2


@pytest.mark.slow
@pytest.mark.parametrize("data", ["raw", "vidbridge_r1"])
def test_overfit_from_the_command_line(data, folder, tmp_path):
    arguments = [*overfit(data, folder, tmp_path), *FEW, "steps=2", "track=wandb", "track.completions_every=1"]
    arguments += ["track.completions_groups=6", f"hydra.run.dir={tmp_path}/run"]
    done = run(ROOT / "train.py", *arguments, cwd=folder, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_lines(tmp_path / "run" / "completions.jsonl") if row["stage"] == "training"]
    seen = {(row["task"], row["uid"]): {clip["path"] for clip in row["clips"]} for row in rows}
    assert max(sum(task == of for of, _ in seen) for task, _ in seen) == 2
    assert all(({clip["path"] for clip in row["clips"]}) == seen[row["task"], row["uid"]] for row in rows)


def overfit(data, folder, tmp_path):
    if data == "raw":
        own = folder / "data" / "own"
        more = [f"data.root={own}/videos", f"data.annotations=[{own}/coin.json,{own}/questions.jsonl]"]
        more += ["data.video_name='{id}'"]
    else:
        path = export_released(tmp_path, [Caption(), DarkEventInfer(), MixVidQA(), QA()], 4)
        more = [f"data.root={tmp_path}/videos", f"data.files.train={path}"]
    return ["debug=overfit", f"data={data}", *more]
