"""Whole runs with model/adapter=lora: gone on, evaluated finished and broken off, saved merged, trained on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.composing import composed, config_of, small_run
from tests.evaluation.test_run_folder import evaluated
from vidbridge.build.common import build_processor
from vidbridge.build.train import build_learner
from vidbridge.policy.adapters import adapted_layers
from vidbridge.policy.loading import load_model
from vidbridge.runtime import launch

pytestmark = pytest.mark.slow
SFT = ["algo=sft", "optim.lr=0.01", "steps=4", "prompts_per_step=2", "eval.every=0", "checkpoint.every=2"]


def run(folder, cache, run_dir, *overrides):
    small = [text for text in small_run(folder, cache) if not text.startswith(("debug", "algo."))]
    told = [*small, "model/adapter=lora", "track=none", "eval.num_items=2", "eval.num_samples=1", *SFT, *overrides]
    cfg = composed(*told)
    run_dir.mkdir(exist_ok=True)
    with launch.claimed(run_dir, launch.public(cfg), again="resume=auto" in overrides):
        train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(untrained_folder, cache, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    run(untrained_folder, cache, run_dir)
    return run_dir


def test_the_run_leaves_adapters_that_have_learnt_and_checkpoints_of_them_alone(finished, untrained_folder):
    settings = json.loads((finished / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (8, 16.0, 0.0)
    assert settings["base_model_name_or_path"] == str(untrained_folder)
    weights = load_file(finished / "model" / "adapter_model.safetensors")
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    held = load_file(finished / "checkpoints" / "step_000004" / "engine.safetensors")
    assert sum(name.startswith("weight.") for name in held) == len(weights)
    assert "sft" in (finished / "model" / "README.md").read_text()


def test_a_finished_run_and_its_newest_checkpoint_score_what_its_summary_says(finished, tmp_path):
    after = json.loads((finished / "summary.json").read_text())["after"]
    assert evaluated(tmp_path / "out", f"checkpoint={finished}")["scores"] == after
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.yaml", "checkpoints"):
        (broken / name).symlink_to(finished / name)
    assert evaluated(tmp_path / "out2", f"checkpoint={broken}")["scores"] == after


def test_a_run_goes_on_as_if_it_had_not_been_broken_off_and_may_be_merged_then(
    finished, untrained_folder, cache, tmp_path
):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("model", "step_000004", "summary.json"))
    run(untrained_folder, cache, tmp_path / "run", "resume=auto", "model.adapter.merged=true")
    there = tmp_path / "run" / "model"
    unbroken, ours = (
        load_file(folder / "adapter_model.safetensors") for folder in (finished / "model", there / "adapter")
    )
    assert unbroken.keys() == ours.keys() and all(torch.equal(ours[name], unbroken[name]) for name in ours)
    adapted = load_model(str(finished / "model"), device="cpu")
    merged = load_model(str(there), device="cpu")
    for name, layer in adapted_layers(adapted).items():
        wanted = layer.get_base_layer().weight + layer.get_delta_weight("default")  # by peft
        torch.testing.assert_close(merged.get_submodule(name).weight, wanted)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    evaluated(tmp_path / "out", f"checkpoint={tmp_path / 'run'}")  # a plain model


def test_a_released_adapter_is_trained_on(finished, cache):
    folder = finished / "model"
    config = config_of(*small_run(folder, cache), "algo.kl_beta=0.1")
    policy = build_learner(config, build_processor(config), steps=1)
    assert policy.reference is policy.module and len(policy.engine.trained) == 2 * len(adapted_layers(policy.module))
    policy = build_learner(replace(config, algo=replace(config.algo, kl_beta=0.0)), policy.processor, steps=1)
    assert policy.reference is None
