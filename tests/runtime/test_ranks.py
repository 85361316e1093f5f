"""Many ranks: real processes that start and end together, whatever happens to one of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.composing import config_of, small_run
from tests.doors import ROOT, Door
from vidbridge.errors import ConfigError
from vidbridge.runtime import launch
from vidbridge.runtime.ranks import Ending, cause

# A door whose run is over in no time: by seed something happens to its second rank, or to both.
DOOR = """
import os, signal, sys, time
from vidbridge.runtime import collectives, launch
from vidbridge.config.checks import ConfigError
from vidbridge.data.rows import DataError

def body(config, public, run_dir):
    print("out of", collectives.rank(), flush=True)
    print("err of", collectives.rank(), file=sys.stderr, flush=True)
    (run_dir / f"pid_{collectives.rank()}").write_text(str(os.getpid()))
    if config.seed == 1 and collectives.rank() == 1:
        raise DataError("rows.jsonl:3: field 'video' is missing")
    if config.seed == 2:
        with collectives.fail_together():
            if collectives.rank() == 1:
                raise DataError("rows.jsonl:3: field 'video' is missing")
    if config.seed == 3:
        raise ConfigError("both say so")
    if config.seed == 4 and collectives.rank() == 1:
        raise RuntimeError("a bug")
    if config.seed == 5 and collectives.rank() == 1:
        os._exit(9)
    if config.seed == 6 and collectives.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 7:
        time.sleep(600)
    after = {kind: {"mean": sum(collectives.all_gather(0.25))} for kind in ("sampled", "greedy")}
    if collectives.is_rank_0():
        (run_dir / "summary.json").write_text(__import__("json").dumps({"after": after}))

if __name__ == "__main__":
    launch.main(body)
"""


def started(tmp_path, *arguments, door=DOOR, **environment):
    """A door on its way."""
    if door is DOOR:
        (tmp_path / "door.py").write_text(DOOR)
    return Door(tmp_path / "door.py" if door is DOOR else door, *arguments, cwd=tmp_path, **environment)


def run(tmp_path, *arguments, **more):
    """Its exit status, stdout and stderr, without the note that a busy machine gets."""
    done = started(tmp_path, *arguments, **more).done()
    out = "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("note: "))
    return done.returncode, out, done.stderr


def run_two(tmp_path, seed):
    return run(tmp_path, f"seed={seed}", "nproc=2", "hydra.run.dir=run")


def gone(pid):
    """The process ends within seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


# --- starting and ending


def test_two_ranks_share_a_run_and_the_first_has_the_console(tmp_path):
    status, out, err = run_two(tmp_path, 0)
    assert (status, out, err) == (0, "out of 0\n", "err of 0\n")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["after"]["greedy"]["mean"] == 0.5  # 0.25 of each
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["nproc"] == 2


@pytest.mark.parametrize(
    "seed, status, message",
    [
        (1, 1, "error: rows.jsonl:3: field 'video' is missing"),
        pytest.param(2, 1, "error: rows.jsonl:3: field 'video' is missing", marks=pytest.mark.slow),
        pytest.param(3, 2, "error: both say so", marks=pytest.mark.slow),
    ],
)
def test_an_error_with_a_message_is_told_once_as_on_one_rank(seed, status, message, tmp_path):
    done, _, err = run_two(tmp_path, seed)
    assert (done, err) == (status, f"err of 0\n{message}\n")
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing was recorded: the folder is given back


@pytest.mark.slow
def test_a_bug_of_one_rank_keeps_its_traceback(tmp_path):
    status, _, err = run_two(tmp_path, 4)
    assert status == 1 and err.count("Traceback") == 1 and err.endswith("RuntimeError: a bug\n\n")


@pytest.mark.parametrize(
    "seed, how", [(5, "ended with status 9"), pytest.param(6, "was killed by SIGKILL", marks=pytest.mark.slow)]
)
def test_a_rank_that_dies_ends_the_others_and_its_last_words_are_told(seed, how, tmp_path):
    status, _, err = run_two(tmp_path, seed)
    assert status == 1 and "Traceback" not in err
    assert f"rank 1 said last:\nerr of 1\nerror: rank 1 {how}" in err
    assert all(gone(path.read_text()) for path in (tmp_path / "run").glob("pid_*"))


def test_a_launcher_that_is_killed_leaves_no_orphans(tmp_path):
    door = started(tmp_path, "seed=7", "nproc=2", "hydra.run.dir=run")
    pids = [tmp_path / "run" / f"pid_{rank}" for rank in (0, 1)]
    while not all(path.exists() and path.read_text() for path in pids):
        assert door.process.is_alive()
        time.sleep(0.05)
    door.process.kill()
    door.done()
    assert all(gone(path.read_text()) for path in pids)


@pytest.mark.slow
def test_a_job_of_a_sweep_may_have_many_ranks(tmp_path):
    status, out, err = run(tmp_path, "-m", "seed=0,1", "nproc=2", "hydra.sweep.dir=sweep")
    assert status == 1 and err.count("field 'video' is missing") == 1
    assert "0.500" in out and "failed (1)" in out


@pytest.mark.slow
def test_a_signal_to_a_sweep_is_one_to_its_job(tmp_path):
    door = started(tmp_path, "-m", "seed=7,0", "nproc=2", "hydra.sweep.dir=sweep")
    pid = tmp_path / "sweep" / "0" / "pid_1"
    while not pid.exists() or not pid.read_text():
        assert door.process.is_alive()
        time.sleep(0.05)
    door.process.terminate()
    assert door.done().returncode == 143 and gone(pid.read_text())
    assert not (tmp_path / "sweep" / "1").exists()  # the other job was not started


def test_ranks_that_others_start_need_one_folder(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.check_outside(config_of(), ["hydra.run.dir=run"])
    with pytest.raises(ConfigError, match="give hydra.run.dir"):
        launch.check_outside(config_of(), ["hydra.sweep.dir=run"])
    with pytest.raises(ConfigError, match="nproc=2, but the ranks are started already"):
        launch.check_outside(config_of("nproc=2"), ["hydra.run.dir=run"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch.check_outside(config_of(), [])


@pytest.mark.parametrize("nproc", ["nproc=0", "hang_s=0"])
def test_no_ranks_and_no_time_are_refused(nproc):
    with pytest.raises(ConfigError, match="must be positive"):
        config_of(nproc)


TOLD = Ending(status=2, message="error: x", at_s=5.0)
BUG = Ending(status=1, message="Traceback", foreseen=False, at_s=1.0)
LOST = Ending(status=1, message="Connection closed by peer", foreseen=False, lost=True, at_s=0.5)
HEARD = Ending(status=1, message="error: rank 1 failed: x", lost=True, at_s=0.5)


@pytest.mark.parametrize(
    "endings, first, exitcode, status, message",
    [
        ([HEARD, TOLD], 0, 1, 2, "error: x"),
        ([HEARD, None], 0, 1, 1, "rank 1 failed: x"),  # ended by us before it could tell
        ([BUG, TOLD], 0, 1, 2, "error: x"),  # what has a message, though it came later
        ([LOST, BUG], 0, 1, 1, "Traceback"),
        ([LOST, None], 0, 1, 1, "words of 1\nerror: rank 1 died"),  # seen a moment later than what came of it
        ([LOST, LOST], 0, 1, 1, "Connection closed by peer"),
        ([None, BUG], 1, 1, 1, "rank 0 said last:\nwords of 0\nTraceback"),  # the first was stuck, and ended by us
        ([Ending(status=143), None], 0, 143, 143, ""),
        ([LOST, None], 1, -9, 1, "words of 1\nerror: rank 1 was killed by SIGKILL"),
        ([LOST, None], 1, 7, 1, "words of 1\nerror: rank 1 ended with status 7"),
    ],
)
def test_of_several_reasons_the_first_cause_is_told(endings, first, exitcode, status, message):
    told = cause(endings, first, exitcode, lambda rank: f"words of {rank}")
    assert told.status == status and message in told.message
    assert (message == "") is (told.message == "")


# --- whole runs

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.mark.slow
def test_two_torchrun_agents_complete_a_run(tmp_path, random_qwen_folder):
    port = 20000 + os.getpid() % 20000
    agent = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}")
    arguments = [*small_run(random_qwen_folder, tmp_path / "cache"), "hydra.run.dir=run"]
    command = [*agent, str(ROOT / "train.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    agents = [subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) for _ in range(2)]
    printed = [process.communicate(timeout=240) for process in agents]
    assert [process.returncode for process in agents] == [0, 0], printed
    assert sorted(out.count("held-out scores") for out, _ in printed) == [0, 1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 0, 1, 1, 2, 2, 2]  # as with one rank


@pytest.mark.slow
def test_secrets_stay_out_of_all_that_a_run_leaves(tmp_path, random_qwen_folder):
    key, canary = "c0ffee" * 6 + "feed", "canary-7e57"  # the first as long as a real one
    small = [text for text in small_run(random_qwen_folder, tmp_path / "cache") if not text.startswith("debug")]
    status, out, err = run(
        tmp_path, *small, "steps=2", "prompts_per_step=2", "eval.num_items=2", "eval.num_samples=1", "eval.every=0",
        "checkpoint.every=1", "allowed_targets=['${oc.env:CANARY}.']", "nproc=2", "hydra.run.dir=run",
        door=ROOT / "train.py", WANDB_API_KEY=key, WANDB_MODE="offline", CANARY=canary, TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert status == 0, err
    assert key not in out + err and canary not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.relative_to(tmp_path / "run").parts[0] for path in files if (tmp_path / "run") in path.parents}
    assert kinds >= {"config.yaml", "checkpoints", "wandb", "metrics.jsonl", "summary.json"}
    leaks = [path for path in files if key.encode() in (content := path.read_bytes()) or canary.encode() in content]
    assert not leaks
    assert "${oc.env:CANARY}" in (tmp_path / "run" / "config.yaml").read_text()  # it was there to be leaked
