"""Exit statuses, and sweeps in which one job fails."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.composing import small_run
from tests.doors import ROOT, run
from vidbridge.errors import ConfigError, DataError
from vidbridge.runtime import launch

# A door whose job does nothing but leave a summary, or fail, by seed.
DOOR = """
import json
from vidbridge.runtime import launch
from vidbridge.data.rows import DataError

def body(config, public, run_dir):
    if config.seed == 1:
        raise DataError("rows.jsonl:3: field 'video' is missing")
    if config.seed == 2:
        raise RuntimeError("a bug")
    after = {"sampled": {"mean": 0.25}, "greedy": {"mean": 0.5}}
    (run_dir / "summary.json").write_text(json.dumps({"after": after}))

launch.main(body)
"""


def run_door(tmp_path, *arguments):
    (tmp_path / "door.py").write_text(DOOR)
    return run(tmp_path / "door.py", *arguments, cwd=tmp_path)


def test_bad_data_are_one_message_and_status_1(tmp_path):
    done = run_door(tmp_path, "seed=1", "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (1, "error: rows.jsonl:3: field 'video' is missing\n")


def test_a_folder_that_holds_a_run_is_left_as_it_is(tmp_path):
    assert run_door(tmp_path, "hydra.run.dir=run").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")}
    done = run_door(tmp_path, "seed=5", "hydra.run.dir=run")
    assert done.returncode == 2 and "run already holds a run" in done.stderr and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*")} == before


def test_of_two_runs_in_one_folder_one_has_it(tmp_path):
    with launch.claimed(tmp_path, {"seed": 1}, again=False):
        again = launch.claimed(tmp_path, {"seed": 2}, again=False)
        with pytest.raises(ConfigError, match="already holds a run"), again:
            raise AssertionError("both have it")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 1}


def test_a_run_that_recorded_nothing_gives_its_folder_back(tmp_path):
    with pytest.raises(DataError), launch.claimed(tmp_path, {}, again=False):
        raise DataError("no rows")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError), launch.claimed(tmp_path, {}, again=False):
        (tmp_path / "metrics.jsonl").touch()
        raise DataError("a bad row in the middle")
    assert (tmp_path / "config.yaml").exists()


def test_what_nobody_foresaw_keeps_its_traceback(tmp_path):
    done = run_door(tmp_path, "seed=2", "hydra.run.dir=run")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "RuntimeError: a bug" in done.stderr


@pytest.mark.slow
def test_a_failing_job_of_a_sweep_stops_no_other_and_shows_in_the_status(tmp_path):
    # the name of the folder holds what means something to Hydra
    done = run_door(tmp_path, "-m", "seed=1,0", "task_mix=qa", "hydra.sweep.dir='sweeps/it\\'s lr=1, today'")
    assert done.returncode == 1
    assert "failed (1)" in done.stdout and "0.250" in done.stdout and "0.500" in done.stdout
    jobs = [tmp_path / "sweeps" / "it's lr=1, today" / name for name in ("0", "1")]
    assert not (jobs[0] / "summary.json").exists()
    assert json.loads((jobs[1] / "summary.json").read_text())["after"]["greedy"]["mean"] == 0.5
    record = yaml.safe_load((jobs[1] / "config.yaml").read_text())
    assert (record["seed"], record["task_mix"]["name"]) == (0, "qa")
    assert record["track"]["group"] == "sweep sweeps it's lr=1, today"


@pytest.mark.slow
def test_a_sweep_with_a_mistake_starts_no_job(tmp_path):
    done = run_door(tmp_path, "-m", "task_mix=qa,nope", "hydra.sweep.dir=sweep")
    assert done.returncode == 2 and "no 'nope'" in done.stderr
    assert not (tmp_path / "sweep" / "0").exists()


def test_train_refuses_a_misspelt_key_with_status_2(tmp_path):
    done = run(ROOT / "train.py", "modle=tiny", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'model'?" in done.stderr and "Traceback" not in done.stderr


def test_the_whole_job_from_the_command_line(tmp_path, random_qwen_folder):
    command = [sys.executable, str(ROOT / "train.py"), *small_run(random_qwen_folder, tmp_path / "cache")]
    done = subprocess.run([*command, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "held-out scores" in done.stdout and "hub" not in done.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {"config.yaml", "metrics.jsonl", "summary.json", "curves.png", "completions.html", "model"}


def test_explain_leaves_other_messages_as_they_are():
    assert launch.explain(ValueError("plain words")) == "plain words"
