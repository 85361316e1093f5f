"""The doors on the device, as people open them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.bench.shape import released, write_folder

ROOT = Path(__file__).parents[2]


def opened(*command: str, status: int = 0) -> str:
    """What the command says, when it has ended as it should."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, text=True, capture_output=True)
    told = f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == status, told
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where all runs find the videos of the embedded world."""
    return f"data.root={tmp_path_factory.mktemp('shapes')}"


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


ENGINES = {
    "local": [],
    "local, 16 bits": ["model.dtype=bfloat16", "model.gradient_checkpointing=true"],
    "zero2": ["engine=zero2", "nproc=1"],
    "zero3": ["engine=zero3", "nproc=1", "model.dtype=bfloat16"],
    "zero3_offload": ["engine=zero3_offload", "nproc=1"],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run(engine, data, tmp_path, record_property):
    """Two steps, held-out scores and the final model; sampler and learner agree."""
    opened("train.py", "debug=smoke", "model.device=cuda", data, f"hydra.run.dir={tmp_path}", *ENGINES[engine])
    steps = [line for line in metrics_of(tmp_path) if "rollout/logprob_gap" in line]
    assert len(steps) == 2 and (tmp_path / "model" / "model.safetensors").exists()
    gaps = [step["rollout/logprob_gap"] for step in steps]
    record_property("logprob_gap", gaps)
    assert max(gaps) < (5e-2 if "model.dtype=bfloat16" in ENGINES[engine] else 1e-4)
    assert all(step["policy/skipped_updates"] == 0 for step in steps)


def test_plan(data):
    assert "fits" in opened("train.py", "debug=smoke", "plan=true", "model.device=cuda", data)


def test_check_model_of_a_random_3b(data, tmp_path):
    """7.5 GB of random numbers with the configuration of the released 3B: all is well but what must be learnt."""
    folder, run = tmp_path / "model", tmp_path / "run"
    folder.mkdir()
    write_folder(folder, released("qwen2_5_vl_3b"), torch.device("cuda"))
    torch.cuda.empty_cache()
    settings = ["rollout.max_completion_tokens=64", "algo.group_size=4", "prompts_per_step=2", "track=none"]
    model = ["model=qwen2_5_vl_3b", f"model.path={folder}", "model.device=cuda"]
    opened("-m", "vidbridge.check_model", *model, *settings, data, f"hydra.run.dir={run}", status=1)
    rows = json.loads((run / "check_model.json").read_text())["rows"]
    assert {row["name"] for row in rows if row["ok"] is False} <= {"it sees", "right answers"}
    shutil.rmtree(folder)
