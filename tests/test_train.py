"""The whole job on a random model: real videos, real rollout, real updates, and everything it leaves behind."""

import json
from unittest.mock import Mock

import pytest
from transformers import Qwen2_5_VLForConditionalGeneration

import evaluate
import train
from tests.composing import composed, config_of, evaluation, small_run
from vidbridge.build import common
from vidbridge.build.common import as_config_errors
from vidbridge.build.evaluation import build_evaluation
from vidbridge.build.train import build_trainer
from vidbridge.errors import ConfigError, DataError
from vidbridge.runtime import launch
from vidbridge.runtime.jsonl_log import read_lines


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
    labels = {"model": "tiny", "algo": "grpo", "task_mix": "proxy", "reward": "combined", "seed": 0, "steps": 2}
    assert {name: summary[name] for name in labels} == labels


def test_metrics_go_by_step(trained):
    lines = read_lines(trained[0] / "metrics.jsonl")
    # two kinds before, step 1, a look at val after it, step 2 (the last: no look), two kinds after
    assert [line["step"] for line in lines] == [0, 0, 1, 1, 2, 2, 2]
    assert "val/sampled/mean" in lines[3] and "policy/grad_norm" in lines[4] and "held_out/greedy/mean" in lines[6]


def test_the_model_is_a_folder_that_from_pretrained_loads(trained):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(trained[0] / "model")
    assert sum(weight.numel() for weight in model.parameters()) > 0
    assert "tags: [vidbridge, qwen2_5_vl, grpo]" in (trained[0] / "model" / "README.md").read_text()


def test_the_saved_model_scores_again_what_it_scored_after_training(trained, tmp_path):
    run_dir, overrides = trained
    overrides = [text for text in overrides if not text.startswith("algo.")]
    cfg = evaluation(*overrides, f"model.path='{run_dir}/model'")
    evaluate.evaluate(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["algo"], summary["task_mix"], summary["steps"]) == (None, None, None)  # of no training
    scores = summary["scores"]
    assert scores == json.loads((run_dir / "summary.json").read_text())["after"]


def test_an_evaluation_builds_no_optimizer(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW", lambda *_, **__: pytest.fail("nothing is trained"))
    overrides = [text for text in trained[1] if not text.startswith("algo.")]
    evaluator, _ = build_evaluation(launch.to_dataclasses(evaluation(*overrides)), public={}, run_dir=tmp_path)
    assert evaluator.rollout.policy.engine is None and evaluator.rollout.policy.reference is None


def test_without_a_number_of_steps_there_is_one_pass(trained, tmp_path):
    def built(*overrides):
        small = [override for override in trained[1] if not override.startswith("algo.")]
        config = config_of(*small, "steps=null", "prompts_per_step=3", *overrides)
        return build_trainer(config, public={}, run_dir=tmp_path)

    # 4 tasks of 2 rows: 8 in all, and 0.6136 * 8 = 4.9 of them for naive
    naive, matched = built("task_mix=naive"), built("task_mix=naive_matched")
    assert (naive.steps, sum(naive.step_fn.sampler.mixture.counts.values())) == (2, 5)
    assert (matched.steps, sum(matched.step_fn.sampler.mixture.counts.values())) == (3, 8)
    sft = built("algo=sft")
    assert sft.steps == 1000  # 200 + 800
    assert (sft.labels["algo"], sft.labels["task_mix"], sft.labels["reward"]) == ("sft", None, None)


@pytest.mark.parametrize(
    "override, message",
    [
        ("+data.rot=x", "Did you mean 'root'?"),
        ("data.seed=abc", "data.seed must be of type int"),
        ("judge._target_=os.system", "not allowed"),
        ("model.path=/no/such/folder", "cannot load a model"),
        ("frames.max_frames=0", "frames.max_frames"),
        ("model.frozen=[eyes]", "cannot freeze 'eyes'"),
        ("model.device=foo", "model.device=foo cannot be used here"),
        ("model.attn_implementation=flash_attention_2", "attn_implementation=flash_attention_2: "),
        ("eval.reward.qa.choice=0", "eval.reward.qa pays for nothing"),
    ],
)
def test_what_only_the_builder_can_see_is_a_config_error_too(override, message, trained, tmp_path):
    with pytest.raises(ConfigError) as error, as_config_errors():
        build_trainer(config_of(*trained[1], override), public={}, run_dir=tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["judge._target_=os.system", "model.path=/no/such/folder", "model.device=foo"])
def test_mistakes_are_refused_before_data_are_made(override, random_qwen_folder, tmp_path):
    with pytest.raises(ConfigError), as_config_errors():
        config = config_of(*small_run(random_qwen_folder, tmp_path / "cache"), override)
        build_trainer(config, public={}, run_dir=tmp_path)
    assert not (tmp_path / "cache").exists()


def test_that_the_hub_is_asked_is_said_before(random_qwen_folder, capsys, monkeypatch):
    asked = []

    def from_folder(path, *_):
        asked.append((path, capsys.readouterr().out))
        return Mock()

    monkeypatch.setattr(common.Processor, "from_folder", from_folder)
    for path in ("some/model", str(random_qwen_folder)):
        common.build_processor(config_of(f"model.path='{path}'"))
    (_, before), (_, nothing) = asked
    assert "some/model" in before and "hub" in before and nothing == ""


def test_a_first_prompt_that_is_too_long_is_named_before_anything_is_trained(trained, tmp_path):
    config = config_of(*trained[1], "model.max_prompt_tokens=5")
    with pytest.raises(DataError, match="/train/0: a prompt of .* max_prompt_tokens=5"), as_config_errors():
        build_trainer(config, public={}, run_dir=tmp_path)
