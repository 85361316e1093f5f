"""The whole job on a random model: real videos, real rollout, real updates, and everything it leaves behind."""

import json

import pytest
from transformers import Qwen2_5_VLForConditionalGeneration

import evaluate
import train
from tests.composing import composed, config_of, small_run
from vidbridge import build, launch
from vidbridge.config import ConfigError
from vidbridge.track.metrics_file import read_lines


@pytest.fixture(scope="module")
def trained(random_qwen_folder, tmp_path_factory):
    """A finished run: its folder and its overrides."""
    run_dir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache")
    overrides = small_run(random_qwen_folder, cache)
    cfg = composed(*overrides)
    train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)
    return run_dir, overrides


def test_summary_has_before_and_after_of_all_tasks(trained):
    summary = json.loads((trained[0] / "summary.json").read_text())
    for when in ("before", "after"):
        assert list(summary[when]) == ["sampled", "greedy"]
        for kind in ("sampled", "greedy"):
            assert 0 <= summary[when][kind]["mean"] <= 1
            tasks = summary[when][kind]["tasks"]
            # caption: recall 1 + 0.5 * precision 1 + wording 0.4
            maxima = {"qa": 1.0, "caption": 1.9, "dark_event_infer": 2.0, "mix_vid_qa": 1.0}
            assert {name: score["max"] for name, score in tasks.items()} == pytest.approx(maxima)
            assert all(score["n"] == 2 and score["low"] <= score["mean"] <= score["high"] for score in tasks.values())
    assert summary["total_s"] >= summary["train_s"] > 0
    assert summary["peak_rss_mb"] > 100
    assert {"data", "rollout", "reward", "learner"} <= set(summary["stage_s"])
    assert (summary["task_mix"], summary["reward"], summary["seed"], summary["steps"]) == ("proxy", "combined", 0, 2)


def test_metrics_go_by_step(trained):
    lines = read_lines(trained[0] / "metrics.jsonl")
    # two kinds before, step 1, a look at val after it, step 2 (the last: no look), two kinds after
    assert [line["step"] for line in lines] == [0, 0, 1, 1, 2, 2, 2]
    assert "val/sampled/mean" in lines[3] and "policy/grad_norm" in lines[4] and "held_out/greedy/mean" in lines[6]


def test_the_model_is_a_folder_that_from_pretrained_loads(trained):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(trained[0] / "model")
    assert sum(weight.numel() for weight in model.parameters()) > 0


def test_the_saved_model_scores_again_what_it_scored_after_training(trained, tmp_path):
    run_dir, overrides = trained
    cfg = composed(*overrides, f"model.path='{run_dir}/model'")
    evaluate.evaluate(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path)
    scores = json.loads((tmp_path / "summary.json").read_text())["scores"]
    assert scores == json.loads((run_dir / "summary.json").read_text())["after"]


def test_a_folder_that_holds_a_run_is_not_written_over(trained):
    run_dir, overrides = trained
    with pytest.raises(ConfigError, match="already holds a run"):
        build.build_tracker(config_of(*overrides), public={}, run_dir=run_dir, job_type="train")


@pytest.mark.parametrize(
    "override, message",
    [
        ("+data.rot=x", "Did you mean 'root'?"),
        ("data.seed=abc", "data.seed must be of type int"),
        ("+reward.qa.chioce=1", "no term 'chioce'"),
        ("judge._target_=os.system", "not allowed"),
        ("model.path=/no/such/folder", "cannot load a model"),
        ("model.max_prompt_tokens=5", "max_prompt_tokens=5"),
        ("frames.max_frames=0", "frames.max_frames"),
        ("model.frozen=[eyes]", "cannot freeze 'eyes'"),
    ],
)
def test_what_only_the_builder_can_see_is_a_config_error_too(override, message, trained, tmp_path):
    with pytest.raises(ConfigError) as error, build.as_config_errors():
        build.build_trainer(config_of(*trained[1], override), public={}, run_dir=tmp_path)
    assert message in str(error.value)
