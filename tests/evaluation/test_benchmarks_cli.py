"""evaluate.py on files of questions and captions, as people start it: killed, on two ranks, with a video missing."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import random_clip
from tests.doors import ROOT, Door, run
from vidbridge.media.write import write_mp4
from vidbridge.runtime.jsonl_log import read_lines, whole_lines

EVALUATE = ROOT / "evaluate.py"
NUM_VIDEOS, NUM_QUESTIONS = 4, 60
SMALL = ["benchmark.frames.max_frames=4", "frames.min_pixels=256", "frames.max_pixels=256"]
SMALL += ["rollout.max_completion_tokens=6", "benchmark.data.workers=0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions on four videos and one that is missing; captions of them."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(NUM_VIDEOS):
        write_mp4(random_clip(4, 16, 16, seed=number), folder / f"{number}.mp4", fps=2)
    with (folder / "qa.jsonl").open("w") as file:
        for number in range(NUM_QUESTIONS):
            video = "gone" if number == 7 else number % NUM_VIDEOS
            row = {"q": f"what is {number}?", "opts": ["red", "green"], "label": number % 2, "clip": f"{video}.mp4"}
            file.write(json.dumps({**row, "kind": "odd" if number % 2 else "even"}) + "\n")
    with (folder / "captions.jsonl").open("w") as file:
        for number in range(NUM_VIDEOS):
            row = {"video": f"{number}.mp4", "caption": "First the square grows, then it spins."}
            file.write(json.dumps(row) + "\n")
    return folder


def questions(files, model, run_dir, *more):
    fields = "benchmark.data.prompt='{q}' benchmark.data.options=opts benchmark.data.answer=label".split()
    fields += ["benchmark.data.answer_is=index", "benchmark.data.video='{clip}'", "benchmark.data.id='{q}'"]
    return command(
        model, run_dir, "benchmark=qa_jsonl", f"benchmark.data.file={files}/qa.jsonl", f"benchmark.data.root={files}",
        *fields, "benchmark.data.categories=[kind]", "benchmark.num_samples=2", "rollout.max_rows=2",
        "track=none", *more,
    )


def command(model, run_dir, *overrides):
    return [f"checkpoint={model}", f"hydra.run.dir={run_dir}", *SMALL, *overrides]


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


@pytest.fixture(scope="module")
def answered(files, random_qwen_folder, tmp_path_factory):
    """The folder of an evaluation on the questions that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "evaluate.py", *questions(files, random_qwen_folder, run_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_questions_of_ones_own_file(answered):
    found = summary(answered)
    assert list(found["scores"]) == ["sampled", "greedy"]
    greedy, sampled = found["benchmark"]["greedy"]["qa"], found["benchmark"]["sampled"]["qa"]
    assert 0 <= greedy["QA accuracy %"]["low"] <= greedy["QA accuracy %"]["value"] <= greedy["QA accuracy %"]["high"]
    assert sampled["qa pass@2 %"]["value"] >= sampled["QA accuracy %"]["value"]
    # number 7, an odd one, has no video: it is left out and listed, not counted
    assert found["benchmark"]["left_out"] == ["what is 7?"]
    assert greedy["items"]["scored"] == NUM_QUESTIONS - 1
    assert {name: each["n"] for name, each in greedy["by category"]["kind"].items()} == {"even": 30, "odd": 29}
    (bad,) = read_lines(answered / "bad_samples.jsonl")
    assert bad["reason"] == "missing"


def test_every_item_has_a_line_with_what_was_written_and_right(answered):
    rows = read_lines(answered / "items.jsonl")
    assert len(rows) == 2 * (NUM_QUESTIONS - 1)
    row = next(row for row in rows if row["kind"] == "sampled" and row["uid"] == "what is 3?")
    assert row["reference"] == "B" and row["source"] == "3.mp4" and row["categories"] == {"kind": "odd"}
    assert len(row["completions"]) == len(row["totals"]) == len(row["terms"]["choice"]) == 2


def test_killed_and_restarted_it_repeats_nothing_and_comes_to_the_same(files, random_qwen_folder, answered, tmp_path):
    arguments = questions(files, random_qwen_folder, tmp_path / "run", "resume=auto")
    door = Door(EVALUATE, *arguments)
    while len(whole_lines(tmp_path / "run" / "items.jsonl")[0]) < 3:
        assert door.process.is_alive()
        time.sleep(0.002)
    door.process.kill()
    assert door.done().returncode == -signal.SIGKILL
    with (tmp_path / "run" / "items.jsonl").open("a") as file:
        file.write('{"uid": "what is 5')  # as a kill in the middle of a line leaves it
    before, _ = whole_lines(tmp_path / "run" / "items.jsonl")
    done = run(EVALUATE, *arguments)
    assert done.returncode == 0, done.stderr
    rows = read_lines(tmp_path / "run" / "items.jsonl")
    assert 3 <= len(before) < len(rows) and rows[: len(before)] == before
    assert rows == read_lines(answered / "items.jsonl")
    assert summary(tmp_path / "run") == summary(answered)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (answered / "metrics.jsonl").read_text()
    shown = read_lines(tmp_path / "run" / "completions.jsonl")  # the first of the items that were asked, and its clip
    assert [row["stage"] for row in shown] == ["held_out/sampled"] * 2 + ["held_out/greedy"]
    assert all((tmp_path / "run" / clip["path"]).is_file() for row in shown for clip in row["clips"])


@pytest.mark.slow
def test_two_ranks_come_to_the_same(files, random_qwen_folder, answered, tmp_path):
    done = run(EVALUATE, *questions(files, random_qwen_folder, tmp_path / "run", "nproc=2"))
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run") == summary(answered)
    assert by_uid(tmp_path / "run") == by_uid(answered)


def by_uid(run_dir):
    return {(row["kind"], row["uid"]): row for row in read_lines(run_dir / "items.jsonl")}


def test_captions_of_ones_own_file_asked_directly(files, random_qwen_folder, tmp_path):
    done = run(
        EVALUATE,
        *command(
            random_qwen_folder, tmp_path / "run", "benchmark=caption_jsonl", "benchmark.prompting=direct",
            f"benchmark.data.file={files}/captions.jsonl", f"benchmark.data.root={files}",
        )
    )
    assert done.returncode == 0, done.stderr
    numbers = summary(tmp_path / "run")["benchmark"]["greedy"]["caption"]
    assert numbers["items"]["scored"] == NUM_VIDEOS
    assert 0 <= numbers["caption F1 %"]["value"] <= 100
    rows = read_lines(tmp_path / "run" / "items.jsonl")
    assert all(row["reference"].startswith("First the square") for row in rows)
    assert all("<answer>" in text for row in rows for text in row["completions"])  # a bare reply is put into one
    # and so it does with W&B, whose tables hold what was seen
    (clip,) = {clip["path"] for row in read_lines(tmp_path / "run" / "completions.jsonl") for clip in row["clips"]}
    kept = [path.read_bytes() for path in (tmp_path / "run" / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert (tmp_path / "run" / clip).read_bytes() in kept
