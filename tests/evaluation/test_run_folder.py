"""What ``checkpoint=`` names: a finished run, one that was broken off, a model; and its scores again."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

import evaluate
import train
from tests.composing import composed, config_of, evaluation, small_run
from vidbridge.errors import CheckpointError, ConfigError
from vidbridge.evaluation import run_folder
from vidbridge.evaluation.benchmark import items_so_far
from vidbridge.record.console import Console
from vidbridge.record.tracker import Tracker
from vidbridge.runtime import launch
from vidbridge.runtime.checkpoint import newest
from vidbridge.runtime.jsonl_log import read_lines

RANDOM = "seed=3"  # another than the default
ASKED = "prompt.tasks.qa.thinking='{question} what is it? {options}'"


@pytest.fixture(scope="module")
def finished(random_qwen_folder, tmp_path_factory):
    """A run of a seed, a prompt and a length of completions that are not the defaults."""
    run_dir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache")
    cfg = composed(*small_run(random_qwen_folder, cache), RANDOM, ASKED, "checkpoint.every=1", "eval.every=0")
    with launch.claimed(run_dir, launch.public(cfg), again=False):
        train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)
    return run_dir


def evaluated(folder, *overrides):
    """Summary of ``evaluate.py checkpoint=..``, as the launcher runs it."""
    cfg = evaluation("track=none", *overrides)
    run_folder.resolve(cfg, ["track=none", *overrides])
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(launch.public(cfg)), folder / "config.yaml")
    evaluate.evaluate(launch.to_dataclasses(cfg), launch.public(cfg), folder)
    return json.loads((folder / "summary.json").read_text())


def test_a_finished_run_scores_what_its_summary_says(finished, tmp_path):
    summary = evaluated(tmp_path / "out", f"checkpoint={finished}")
    assert summary["scores"] == json.loads((finished / "summary.json").read_text())["after"]
    assert summary["seed"] == 3 and summary["benchmark"]["name"] == "held_out"
    assert (summary["prompt"], summary["benchmark"]["prompting"]) == ("tiny", "thinking")
    said = OmegaConf.load(tmp_path / "out" / "config.yaml").prompt.tasks.qa.thinking
    assert said == "{question} what is it? {options}"  # of the run
    numbers = summary["benchmark"]["greedy"]
    assert {"caption F1 %", "caption recall %", "caption precision %"} < set(numbers["caption"])
    assert numbers["dark_event_infer"]["items"] == {"scored": 2, "without a judge's reply": 0}


def test_the_newest_checkpoint_of_a_run_that_was_broken_off_is_the_same_model(finished, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (broken / name).symlink_to(finished / name)
    summary = evaluated(tmp_path / "out", f"checkpoint={broken}")
    assert summary["scores"] == json.loads((finished / "summary.json").read_text())["after"]


def test_an_evaluation_goes_on_only_as_the_one_it_was(finished, tmp_path):
    evaluated(tmp_path / "out", f"checkpoint={finished}")
    (tmp_path / "out" / "metrics.jsonl").write_text("of a run that died\n")
    cfg = evaluation("track=none", "resume=auto", f"checkpoint={finished}")
    run_folder.resolve(cfg, ["track=none", "resume=auto", f"checkpoint={finished}"])
    config, public = launch.to_dataclasses(cfg), launch.public(cfg)
    lines = read_lines(tmp_path / "out" / "items.jsonl")
    assert items_so_far(config, public, tmp_path / "out", tracker_in(tmp_path / "out")) == lines
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == ""
    for other in ({"seed": 5}, {"benchmark": {**public["benchmark"], "num_items": 1}}):
        with pytest.raises(CheckpointError, match="is of another configuration"):
            items_so_far(config, {**public, **other}, tmp_path / "out", tracker_in(tmp_path / "out"))


def test_training_goes_on_only_with_the_prompt_that_it_had(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    cfg = composed("resume=auto", "prompt=qwen")
    record = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml"))
    cfg = OmegaConf.merge(cfg, {**record, "prompt": cfg.prompt, "resume": "auto", "steps": 3})
    with pytest.raises(CheckpointError, match="prompt.tasks.caption.thinking: {question} -> {question}\n\nIn <think>"):
        train.train(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path / "run")


def test_a_run_from_before_there_were_prompts_is_asked_as_it_was(finished, tmp_path):
    record = OmegaConf.load(finished / "config.yaml")
    del record["prompt"]
    OmegaConf.save(record, tmp_path / "config.yaml")
    (tmp_path / "model").symlink_to(finished / "model")
    for said, name in ([], "tiny"), (["prompt=qwen"], "qwen"):
        cfg = evaluation(f"checkpoint={tmp_path}", *said)
        run_folder.resolve(cfg, said)
        assert launch.to_dataclasses(cfg).prompt == config_of(f"prompt={name}").prompt


def tracker_in(folder):
    return Tracker(folder, Console(), completions_every=0, completions_groups=0, hang_s=60)


def test_the_command_line_has_the_last_word(finished):
    overrides = [f"checkpoint={finished}", "eval.num_items=1", "seed=4", "frames.max_frames=2"]
    overrides += ["task=[qa]"]
    cfg = evaluation(*overrides)
    run_folder.resolve(cfg, overrides)
    config = launch.to_dataclasses(cfg)
    assert (config.eval.num_items, config.seed, config.frames.max_frames, list(config.tasks)) == (1, 4, 2, ["qa"])
    assert (config.eval.num_samples, config.rollout.max_completion_tokens) == (1, 6)  # of the run
    assert config.model.path == str(finished / "model") and config.checkpoint is None


def test_a_checkpoint_is_that_of_the_last_step(finished, tmp_path):
    (tmp_path / "config.yaml").symlink_to(finished / "config.yaml")
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    cfg = evaluation(f"checkpoint={tmp_path}")
    run_folder.resolve(cfg, [])
    found, _ = newest(finished / "checkpoints")
    assert cfg.checkpoint == str(tmp_path / "checkpoints" / found.path.name) and found.step == 2


def test_a_model_is_a_path(random_qwen_folder):
    for name in (str(random_qwen_folder), "Qwen/Qwen2.5-VL-3B-Instruct"):
        cfg = evaluation(f"checkpoint='{name}'")
        run_folder.resolve(cfg, [])
        assert (cfg.model.path, cfg.checkpoint) == (name, None)


def test_what_cannot_be_evaluated_is_said(finished, tmp_path):
    def refusal(folder, *overrides):
        with pytest.raises(ConfigError) as error:
            run_folder.resolve(evaluation(f"checkpoint={folder}", *overrides), overrides)
        return str(error.value)

    assert "neither a run (config.yaml) nor a model (config.json)" in refusal(tmp_path)
    assert "leave model=.. out" in refusal(finished, "model=qwen2_5_vl_3b")
    (tmp_path / "config.yaml").symlink_to(finished / "config.yaml")
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    assert "step_000001: manifest.json is missing" in refusal(tmp_path)
