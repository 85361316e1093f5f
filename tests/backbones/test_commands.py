"""The families beside Qwen2.5-VL through the command line: train, go on, evaluate, and plan without weights."""

import json
from pathlib import Path

import pytest
import torch

from tests import doors
from tests.backbones.families import write_family
from tests.composing import small_run
from vidbridge.backbones import FAMILIES, backbone_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2_5_vl"])
def test_train_go_on_and_evaluate(tmp_path, family):
    folder = write_family(family, tmp_path / "model")
    # random words earn nothing: what tells siblings apart is their length, which ends at the first letter e
    by_length = ["algo.overlong_frac=0.9", "rollout.stop=[e]", "algo.group_size=8"]
    has_router = family.endswith("moe")
    by_length += ["algo.router_aux_coef=0.01"] * has_router
    run_dir, small = tmp_path / "run", [*small_run(folder, tmp_path / "cache"), *by_length, "track=none"]
    for steps, resume in ((2, "never"), (3, "auto")):
        words = [*small, f"steps={steps}", "checkpoint.every=1", f"resume={resume}", f"hydra.run.dir={run_dir}"]
        done = doors.run(ROOT / "train.py", *words)
        assert done.returncode == 0, done
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["rollout/logprob_gap_max"] for line in lines if "rollout/logprob_gap_max" in line]
    assert {line["step"] for line in lines} >= {1, 2, 3} and gaps and max(gaps) < 1e-3
    assert has_router == any("policy/router_loss" in line and "policy/expert_load_max" in line for line in lines)
    done = doors.run(
        ROOT / "evaluate.py", f"checkpoint={run_dir}", "track=none", f"hydra.run.dir={tmp_path / 'evaluated'}"
    )
    assert done.returncode == 0, done
    after, again = (json.loads((folder / "summary.json").read_text()) for folder in (run_dir, tmp_path / "evaluated"))
    assert {kind: scores["mean"] for kind, scores in again["scores"].items()} == {
        kind: scores["mean"] for kind, scores in after["after"].items()
    }
    saved = backbone_of(family).model_class.from_pretrained(run_dir / "model")
    before = backbone_of(family).model_class.from_pretrained(folder)
    assert not torch.equal(saved.lm_head.weight, before.lm_head.weight)


@pytest.mark.parametrize("model", ["qwen3_vl_8b", "qwen3_vl_30b_a3b", "qwen3_5_9b"])
def test_a_released_model_is_planned_without_its_weights(tmp_path, model):
    words = [f"model={model}", "data.num_rows={train: 2, val: 2, test: 2}", f"paths.cache={tmp_path}"]
    done = doors.run(ROOT / "train.py", *words, "model.device=cuda", "nproc=8", "engine=zero3", "plan=true")
    assert done.returncode == 1 and "does not fit" in done.stdout, done  # no GPU is here
    assert "is not here: planned by the numbers of model.shape" in done.stdout.replace("\n", " ")
