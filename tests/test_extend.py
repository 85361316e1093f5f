"""What adding something takes, done from outside of the package: one file and one yaml, or a yaml alone.

A task, a video edit, a reward, an objective, an advantage scale, a judge and a rollout engine; a prompt and a benchmark
by a yaml. No file of ours is touched.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
import train
from tests.composing import composed, config_of, evaluation, small_evaluation, small_run
from tests.conftest import random_clip
from tests.data.exporting import export_annotations
from vidbridge.build.common import as_config_errors
from vidbridge.data.formats.annotated_videos import Raw
from vidbridge.errors import ConfigError, DataError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.origins import origins, origins_of
from vidbridge.media.write import write_mp4
from vidbridge.policy.processor import Processor
from vidbridge.runtime import launch
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import VideoRef

BUDGET = FrameBudget(fps=4.0, max_frames=64, min_pixels=2304, max_pixels=2304, multiple=16)

EXTENSIONS = Path(__file__).parent / "extensions"  # what a user writes: a module each, and a conf tree


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder of the user's own, whose modules can be imported."""
    shutil.copytree(EXTENSIONS, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run_with(user_folder, model_folder, *overrides):
    """A run of seconds with the user's folder on the search path; returns its summary and its metrics."""
    search = f"hydra.searchpath=['file://{user_folder}/conf']"
    cfg = composed(*small_run(model_folder, user_folder / "cache"), search, "allowed_targets=[my_]", *overrides)
    run_dir = user_folder / "run"
    run_dir.mkdir()
    train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)
    return json.loads((run_dir / "summary.json").read_text()), (run_dir / "metrics.jsonl").read_text()


def test_a_new_reward(user_folder, random_qwen_folder):
    summary, metrics = run_with(user_folder, random_qwen_folder, "reward=brevity", "task_mix=caption")
    assert summary["reward"] == "brevity"
    assert "reward/caption/brevity" in metrics
    # evaluated by the whole reward all the same: 1.9 without the 0.5 for brevity
    assert summary["after"]["sampled"]["tasks"]["caption"]["max"] == pytest.approx(1.9)


def test_a_new_task(user_folder, random_qwen_folder):
    summary, metrics = run_with(user_folder, random_qwen_folder, "+task=counting", "task_mix=qa", "seed=1")
    assert list(summary["after"]["greedy"]["tasks"])[-1] == "counting" and len(summary["after"]["greedy"]["tasks"]) == 5
    assert "reward/counting/choice" in metrics


def test_a_new_video_edit(user_folder, random_qwen_folder):
    """The shapes world writes it into its files, data=raw shows it while it reads, in a process of its own."""
    _, metrics = run_with(user_folder, random_qwen_folder, "+task=swapped", "task_mix=qa", "seed=1")
    assert "reward/swapped/choice" in metrics
    export_annotations(user_folder, 4)
    folder, annotations = str(user_folder / "videos"), str(user_folder / "coin.json")
    data = Raw(root=folder, annotations=[annotations], workers=1, held_out_frac=1e-9)
    swapped = importlib.import_module("my_swapped").Swapped()
    task = data.filled(TaskRows(task=swapped, frames=BUDGET, read=data.reader), "train")
    for sample in map(task.sample, range(4)):
        (clip,), (video,) = task.prompt(sample).clips, sample.videos
        plain = decode(VideoRef(path=f"{folder}/{video.path}"), BUDGET)
        # four frames a second: those of the event, which lasts one
        first = 4 * "ABC".index(sample.answer)
        expected = plain.frames.copy()
        expected[first : first + 4] = expected[first : first + 4, :, :, ::-1]
        assert np.array_equal(clip.frames, expected) and np.array_equal(clip.times_s, plain.times_s)
        assert origins(sample, 0, clip.times_s) == origins_of(VideoRef(path=video.path), clip.times_s)


def test_a_new_task_without_a_template_is_refused(user_folder):
    search = f"hydra.searchpath=['file://{user_folder}/conf']"
    with pytest.raises(ConfigError, match="prompt.tasks.counting.thinking is missing: the text that asks 'counting'"):
        config_of(search, "allowed_targets=[my_]", "+task=counting", "~prompt.tasks.counting")


def test_a_new_prompt(user_folder, random_qwen_folder, monkeypatch):
    read, encode = [], Processor.encode

    def encoded(self, prompt):
        read.append(self.render(prompt.messages))
        return encode(self, prompt)

    monkeypatch.setattr(Processor, "encode", encoded)
    summary, _ = run_with(user_folder, random_qwen_folder, "prompt=short", "task=[qa]", "task_mix=qa")
    assert summary["prompt"] == "short"
    assert len(set(read)) >= 4  # two rows of a split, of two
    # the chat template of this model has a system message of its own, where there is none
    start = "<|im_start|>system\nthe square is red<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
    assert all(re.fullmatch(re.escape(start) + r"<.vision_end.>What [^\n]*\? A\. (.|\n)*", text) for text in read)


def test_modules_that_are_not_named_in_allowed_targets_are_refused(user_folder, random_qwen_folder):
    with pytest.raises(ConfigError, match="my_brevity.Brevity' is not allowed"), as_config_errors():
        run_with(user_folder, random_qwen_folder, "reward=brevity", "allowed_targets=[]")


def test_a_new_objective_and_a_new_advantage_scale(user_folder, random_qwen_folder):
    # a random model earns nothing; with the penalty its groups are worked on all the same
    asked = ("algo=cispo", "task_mix=caption", "algo.group_size=4", "algo.kl_beta=0.01")
    _, metrics = run_with(user_folder, random_qwen_folder, *asked)
    rows = [json.loads(line) for line in metrics.splitlines()]
    learnt = [row for row in rows if "policy/weight_max" in row]
    assert learnt and all(row["policy/weight_max"] >= 1.0 and "policy/clip_low_frac" not in row for row in learnt)


def test_a_new_correction(user_folder, random_qwen_folder):
    """It trusts nothing: a sampler that draws the likeliest tokens alone finds them far likelier than the learner."""
    asked = ("algo=cispo", "task_mix=caption", "algo.kl_beta=0.01", "algo.correction_cap=1.01", "rollout.top_p=0.01")
    _, metrics = run_with(user_folder, random_qwen_folder, *asked)
    rows = [json.loads(line) for line in metrics.splitlines()]
    assert {row["policy/loss"] for row in rows if "policy/loss" in row} == {0.0}


def test_a_function_that_is_not_there_is_named(user_folder, random_qwen_folder):
    with pytest.raises(ConfigError, match="algo.objective: there is no function 'cliped'. Did you mean 'clipped'"):
        config_of("algo.objective=cliped")
    with pytest.raises(ConfigError, match="algo.objective: 'os.system' is not allowed"), as_config_errors():
        run_with(user_folder, random_qwen_folder, "algo.objective=os.system")


def test_a_new_judge(user_folder, random_qwen_folder):
    """It pays nothing for answers to DarkEventInfer, which the self-test notices."""
    with pytest.raises(DataError, match="gold answer earns"):
        asked = ("judge=strict", "task_mix=dark_event_infer", "task=[dark_event_infer]")
        run_with(user_folder, random_qwen_folder, *asked)


def test_a_new_rollout_engine(user_folder, random_qwen_folder):
    """It is told what every engine is told, by a model's yaml too, and what it alone knows."""
    run_with(user_folder, random_qwen_folder, "rollout=echo", "task_mix=caption", "rollout.times=3")
    rows = read_lines(user_folder / "run" / "completions.jsonl")
    written = [row["completion"] for row in rows if row["stage"] == "training"]
    assert written and set(written) == {"green green green ", "green green green it "}


@pytest.mark.parametrize(
    "override, message",
    [
        ("+rollout.wrod=red", "rollout: there is no argument 'wrod'. Did you mean 'word'?"),
        ("rollout.word=3", "rollout.word must be of type str, got 3"),
        ("~rollout.word", "rollout.word is missing: EchoConfig needs it"),
        ("rollout.max_completion_tokens=0", "rollout.max_completion_tokens must be positive"),
        ("rollout._target_=my_engine.Echo", "rollout: there is no argument"),
    ],
)
def test_its_keys_are_checked_when_the_configuration_is_composed(override, message, user_folder):
    search = f"hydra.searchpath=['file://{user_folder}/conf']"
    with pytest.raises(ConfigError) as error:
        config_of(search, "allowed_targets=[my_]", "rollout=echo", override)
    assert message in str(error.value)


def test_a_new_benchmark(user_folder, random_qwen_folder):
    write_mp4(random_clip(4, 16, 16), user_folder / "film.mp4", fps=2)
    rows = [{"ask": f"what is {name}?", "a": "red", "b": "green", "right": 1, "clip": "film"} for name in "xyz"]
    (user_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = evaluation(
        *small_evaluation(random_qwen_folder, user_folder / "cache"),
        f"hydra.searchpath=['file://{user_folder}/conf']",
        "benchmark=mine",
        f"benchmark.data.file={user_folder}/rows.jsonl",
        f"benchmark.data.root={user_folder}",
    )
    run_dir = user_folder / "run"
    run_dir.mkdir()
    evaluate.evaluate(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["benchmark"]["name"] == "mine" and summary["scores"]["greedy"]["tasks"]["qa"]["n"] == 3
