"""plan=true: what it says, and that nothing is trained, loaded or claimed."""

from __future__ import annotations

import io
import os
import shutil
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
from rich.console import Console

from tests.composing import config_of, small_run
from vidbridge.errors import ConfigError, DataError
from vidbridge.memory_plan import plan
from vidbridge.memory_plan.memory import Memory, Moment, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.memory_plan.sizes import TaskSizes
from vidbridge.policy.model_folder import read_config
from vidbridge.runtime import launch

GIGA = 10**9
SIZES = [
    TaskSizes(
        name=name, num_rows=9, share=share, prompt_tokens=[tokens], video_tokens=[4], patches=[16], num_bytes=[1000]
    )
    for name, share, tokens in (("qa", 0.25, 10), ("caption", 0.75, 20))
]


@pytest.fixture(scope="module")
def small(random_qwen_folder, tmp_path_factory):
    """Overrides of a small run whose model has no weights on disk."""
    folder = shutil.copytree(random_qwen_folder, tmp_path_factory.mktemp("model") / "bare")
    (folder / "model.safetensors").unlink()
    return small_run(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shown():
    """Call plan.show; returns its answer and the words."""

    def show(config):
        console = Console(width=200, file=io.StringIO())
        return plan.show(config, console), console.file.getvalue()

    return show


def test_a_run_that_fits_is_told_without_its_weights(small, shown):
    fits, text = shown(config_of(*small))
    assert fits
    assert "fits: at most" in text and "the memory of this machine" in text
    for words in ("dark_event_infer", "42.8%", "of them video", "KV cache", "optimizer", "rollout tokens", "2 steps"):
        assert words in text


def test_what_does_not_fit_is_told_with_the_key_to_turn(small, shown, monkeypatch):
    monkeypatch.setattr(plan, "available_ram", lambda: 1e5)
    fits, text = shown(config_of(*small))
    assert not fits
    assert "does not fit: learner needs" in text and "Most of it is activations" in text
    assert "engine.max_packed_tokens" in text


def test_a_run_for_gpus_is_planned_where_there_are_none(small, shown, monkeypatch):
    monkeypatch.setattr(plan.torch.cuda, "device_count", lambda: 0)
    fits, text = shown(config_of(*small, "model.device=cuda", "nproc=2"))
    assert not fits and "0 CUDA devices for 2 ranks" in text and "on the CPU" in text


def test_the_memory_of_a_gpu_is_asked_of_each_that_has_a_rank(monkeypatch):
    free = {0: 50 * GIGA, 1: 30 * GIGA, 2: 1}
    monkeypatch.setattr(plan.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(plan.torch.cuda, "mem_get_info", lambda place: (free[place], 80 * GIGA))
    monkeypatch.setattr(plan.torch.cuda, "get_device_name", lambda place: "a GPU")
    monkeypatch.setattr(plan, "available_ram", lambda: 64.0 * GIGA)
    offer = plan.offered(plan.planned_device("cuda"), local_ranks=2)
    assert (offer.name, offer.device, offer.host) == ("a GPU", 30 * GIGA, 32 * GIGA)
    assert plan.offered(plan.torch.device("cuda:2"), local_ranks=1).device == 1
    assert plan.offered(plan.planned_device("cuda"), local_ranks=4).device == 0


def test_too_much_by_hand():
    """On a GPU a tenth to spare: 10 + 8 GB and 1.8."""
    moment = Moment(stage="update", device={"weights": 10 * GIGA, "optimizer": 8 * GIGA}, host={"videos": GIGA})
    offer = plan.Offer(kind="cuda", name="a GPU", device=19.9 * GIGA, host=2 * GIGA)
    assert plan.too_much(moment, offer) == []
    (line,) = plan.too_much(moment, replace(offer, device=19.7 * GIGA))
    assert "update needs 19.80 GB a rank" in line and "19.70 GB (a GPU)" in line and "weights, 10.00 GB" in line
    (line,) = plan.too_much(moment, replace(offer, host=GIGA))
    assert "1.30 GB" in line and "the memory of the CPU" in line and "prompts_per_step" in line


def test_there_is_advice_for_everything_that_is_held(random_qwen_folder):
    config = config_of("steps=1")
    for on_gpu in (False, True):
        for sharding in (Sharding(), Sharding(stage=3, ranks=2), Sharding(stage=3, ranks=2, offload=True)):
            memory = memory_of(config, random_qwen_folder, sharding=sharding, on_gpu=on_gpu, has_reference=True)
            moments = plan.moments_of(config, memory, SIZES)
            assert [moment.stage for moment in moments] == list(plan.STAGES[sharding.stage != 3 :])  # without loading
            assert {part for moment in moments for part in (*moment.device, *moment.host)} <= plan.TURN.keys()


def memory_of(config, folder, *, sharding=Sharding(), on_gpu=False, has_reference=False):
    model = ModelSize.of(read_config(str(folder)), config.model)
    return Memory(model=model, sharding=sharding, on_gpu=on_gpu, has_reference=has_reference)


def test_costs_by_hand(random_qwen_folder):
    """4 prompts x 2 completions of 6 tokens; prompts of 0.25 * 10 + 0.75 * 20 = 17.5 tokens and 16 patches."""
    config = config_of(
        "steps=1", "prompts_per_step=4", "algo.group_size=2", "rollout.max_completion_tokens=6", "rollout.max_rows=4"
    )
    memory = memory_of(config, random_qwen_folder, sharding=Sharding(ranks=1))
    found = plan.costs(config, memory, SIZES)
    model = memory.model
    # of 32 x 32 query and output, 16 x 32 key and value, biases, 3 of 32 x 64, two norms
    text = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 32 + 2 * 16 + 3 * 32 * 64 + 2 * 32)
    assert model.active_in_text == text
    assert (found["learner tokens"], found["rollout tokens"]) == (70 + 8 * 5, 70 + 8 * 6)
    vocabulary, vision = model.in_vocabulary, model.in_vision_blocks
    assert found["learner, TFLOP"] * 1e12 == pytest.approx(6 * (110 * text + 48 * vocabulary + 64 * vision))
    assert found["rollout, TFLOP"] * 1e12 == pytest.approx(2 * (118 * text + 48 * vocabulary + 64 * vision))
    # 2 groups at a time, so two turns of 6 steps
    read = found["weights a rank reads while decoding, TB"] * 1e12
    assert read == pytest.approx(2 * 6 * 4 * (text + vocabulary))
    two = replace(memory, sharding=Sharding(ranks=2))
    assert plan.costs(config, two, SIZES)["weights a rank reads while decoding, TB"] * 1e12 == pytest.approx(read / 2)


def test_more_ranks_hold_fewer_prompts(random_qwen_folder):
    config = config_of("steps=1", "prompts_per_step=8", "eval.num_items=8")
    alone, divided = (
        {moment.stage: moment.device["videos"] for moment in plan.moments_of(config, memory, SIZES)}
        for memory in (memory_of(config, random_qwen_folder, sharding=Sharding(ranks=n)) for n in (1, 4))
    )
    # this step's and the next one's
    assert alone["learner"] == 2 * 8 * 1000 and divided["learner"] == 2 * 2 * 1000


def test_shares_of_supervised_fine_tuning_are_those_of_all_stages():
    """200 steps of captions alone, 800 of four tasks evenly: captions 0.2 + 0.8 / 4."""
    shares = plan.task_shares(config_of("algo=sft"))
    assert shares == pytest.approx({"qa": 0.2, "caption": 0.4, "dark_event_infer": 0.2, "mix_vid_qa": 0.2})
    assert sum(plan.task_shares(config_of()).values()) == pytest.approx(1)


def test_fine_tuning_from_random_weights_is_planned_too(small, shown):
    overrides = [override for override in small if not override.startswith(("algo.", "model.path"))]
    fits, text = shown(config_of(*overrides, "algo=sft", "model.random_weights=true"))
    assert fits and "learner" in text and "KV cache" in text  # of the evaluation
    assert "rollout tokens" not in text


def test_of_many_ranks_the_first_one_answers(small, shown, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert plan.sharding_of(config_of()).ranks == 4
    assert "a rank of 4" in shown(config_of(*small))[1]
    monkeypatch.setenv("RANK", "1")
    assert shown(config_of(*small)) == (True, "")


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("model.path=no/such/model", ConfigError, "cannot load a model from 'no/such/model'"),
        ("model.frozen=[eyes]", ConfigError, "cannot freeze 'eyes'"),
        ("model.max_prompt_tokens=5", DataError, "exceeds max_prompt_tokens=5"),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(override, error, message, small, shown):
    with pytest.raises(error, match=message):
        shown(config_of(*small, override))


@pytest.mark.parametrize("fits, status", [(True, 0), (False, 1), (None, 2)])
def test_the_door_trains_nothing_and_leaves_no_folder(fits, status, monkeypatch, tmp_path, capsys):
    run_dir = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", "plan=true", f"hydra.run.dir={run_dir}"])
    # launch.main sets a variable for its whole process
    with patch.dict(os.environ), pytest.raises(SystemExit) as end:
        launch.main(lambda *_: pytest.fail("nothing is trained"), plan=None if fits is None else lambda config: fits)
    assert end.value.code == status and not run_dir.exists()
    assert ("belongs to train.py" in capsys.readouterr().err) == (fits is None)
