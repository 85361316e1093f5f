"""What ranks do together: one checkpoint, one end; and what one does that hangs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.composing import config_of
from tests.ranks import on_ranks
from vidbridge.config.instantiate import free_keys
from vidbridge.errors import CheckpointError, RankFailed, Stopped
from vidbridge.runtime import collectives
from vidbridge.runtime.checkpoint import Checkpointer, check_same, newest
from vidbridge.runtime.signals import StopSignals


def write_and_stop(folder):
    """What two ranks do with checkpoints and signals; the assertions are those of the rank that makes them."""
    rank = collectives.rank()

    def fill(path):
        (path / f"engine_{rank}.bin").write_bytes(bytes([rank] * 100))

    def fail(path):
        fill(path)
        if rank == 1:
            raise OSError("No space left on device")

    writer = Checkpointer(folder / "checkpoints", every=1, keep_last=2, keep_best=False)
    for step in (1, 2, 3):
        writer.save(step, {"random": collectives.all_gather(f"of {rank}")}, fill)
    with pytest.raises(CheckpointError if rank == 1 else RankFailed, match="No space left"):
        writer.save(4, {}, fail)
    collectives.all_gather(None)  # the first rank has cleared up
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000003"]
    found, refused = newest(folder / "checkpoints")
    assert (found.step, found.state["random"], refused) == (3, ["of 0", "of 1"], [])
    assert {path.name for path in found.path.glob("engine*")} == {"engine_0.bin", "engine_1.bin"}

    made = collectives.local_rank_0_first(lambda: (folder / "made").exists() or (folder / "made").touch())
    assert made is (None if rank == 0 else True)

    signals = StopSignals()
    with signals.installed(), pytest.raises(Stopped) as stopped, signals.deferred():
        for step in range(5):
            if step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)  # to one of them
            signals.check()
    assert (step, stopped.value.status, stopped.value.agreed) == (2, 143, True)
    with signals.installed():
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt the saving
    late = StopSignals()
    with late.installed(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGINT)  # outside of the steps nobody knows where the others are
    assert (stopped.value.status, stopped.value.agreed) == (130, False)
    (folder / f"passed_{rank}").touch()


def test_two_ranks_write_one_checkpoint_and_stop_at_one_step(tmp_path):
    on_ranks(write_and_stop, tmp_path)
    assert (tmp_path / "passed_0").exists() and (tmp_path / "passed_1").exists()


def test_a_checkpoint_is_of_so_many_ranks_but_of_any_launcher(tmp_path):
    free = list(free_keys(config_of()))
    two = {"seed": 0, "world_size": 2, "nproc": 2, "hang_s": 60}
    check_same(two, {**two, "nproc": 1, "hang_s": 1}, tmp_path, free)  # torchrun, say
    with pytest.raises(CheckpointError, match="world_size: 2 -> 4"):
        check_same(two, {**two, "world_size": 4}, tmp_path, free)


def test_a_process_that_hangs_says_where_and_ends():
    code = (
        "import time\nfrom vidbridge.runtime.watchdog import Watchdog\n"
        "def stuck():\n    time.sleep(60)\n"
        "with Watchdog(0.5) as watchdog:\n    time.sleep(0.3)\n    watchdog.alive()\n    time.sleep(0.3)\n"
        "    print('alive', flush=True)\n    stuck()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "alive\n") and "in stuck" in done.stderr
