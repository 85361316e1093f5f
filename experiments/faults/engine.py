"""Rollout servers that fail while a run samples from them: it goes on as if nothing had been, or ends and can go on.

    python -m experiments.faults.engine [--json FILE] [--tries 1] [--engine zero3 --nproc 2]

Real runs of train.py against real servers (faulty_server.py). ``survived``: the run gives what an unbroken one gives,
every metric and weight to the last bit. So no gradient was wrong: not of older weights, of fewer completions, of NaN,
nor of those of another run.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator

import torch

from experiments.faults.harness import (
    REPOSITORY,
    Case,
    Options,
    difference,
    main,
    overrides_of,
    resumed,
    sharded,
    start,
    steps_done,
    unbroken_run,
    wait_for,
    words,
)
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.remote import RemoteRollout
from vidbridge.rollout.serve import TINY
from vidbridge.rollout.served_shared_prefix import NO_FRAMES
from vidbridge.rollout.server_client import Server

REMOTE = ("rollout=vllm_server", "rollout.patience_s=60", "eval.before=false")
MIDDLE = 8  # a request in the fourth step


class Servers:
    """Processes with a server each; all are ended with the context."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, fault: str = "none", at: int = MIDDLE, port: int = 0) -> tuple[str, subprocess.Popen[str]]:
        """Return the address of one that is ready, and its process."""
        command = [sys.executable, "-m", "experiments.faults.faulty_server", "--port", str(port)]
        process = subprocess.Popen(
            [*command, "--fault", fault, "--at", str(at)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        return process.stdout.readline().strip(), process


@contextmanager
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for engine, nproc in options.settings:
        overrides = (*overrides_of(engine, nproc), *REMOTE)
        unbroken = folder / f"unbroken_{engine}"
        with servers() as there:
            problem = unbroken_run(unbroken, *overrides, at(there.start()[0]))
        if problem:
            yield "unbroken run", problem
            continue
        for name, problem in faults(folder / engine, overrides, unbroken):
            yield f"{engine} x {nproc}: {name}", problem
    yield from ahead(folder / "ahead")


def at(*addresses: str) -> str:
    return f"rollout.addresses=[{','.join(addresses)}]"


def faults(folder: Path, overrides: tuple[str, ...], unbroken: Path) -> Iterator[Case]:
    folder.mkdir()
    for fault in ("fewer", "nan"):
        with servers() as there:
            address, _ = there.start(fault)
            process = start(folder / fault, *overrides, at(address))
            yield f"a server that gives {fault}", ended(process, folder / fault, unbroken)
    with servers() as there:
        address, server = there.start("exit")
        process = start(folder / "exit", *overrides, at(address))
        wait_for(lambda: server.poll() is not None, process)
        there.start(port=int(address.rpartition(":")[2]))
        yield "the server ends, and is started with old weights", ended(process, folder / "exit", unbroken)
    with servers() as there:
        addresses = there.start("exit", MIDDLE // 2)[0], there.start()[0]
        process = start(folder / "one_of_two", *overrides, at(*addresses))
        yield "one of two servers ends", ended(process, folder / "one_of_two", unbroken)
    with servers() as there:
        addresses = there.start("hang", MIDDLE // 2)[0], there.start()[0]
        process = start(folder / "hang", *overrides, at(*addresses), "rollout.timeout_s=5")
        yield "one of two servers hangs", ended(process, folder / "hang", unbroken)
    with servers() as there:
        address, _ = there.start()
        process = start(folder / "other", *overrides, at(address))
        wait_for(lambda: steps_done(folder / "other") >= 4, process)
        push_others(address)
        yield "another run pushes its weights", ended(process, folder / "other", unbroken)
    with servers() as there:
        address, server = there.start()
        run_dir = folder / "gone"
        process = start(run_dir, *overrides, at(address), "rollout.patience_s=2")
        wait_for(lambda: steps_done(run_dir) >= 5, process)
        server.kill()
        status, said = process.wait(300), words(run_dir)
        problem = None if status == 1 and "no rollout server for" in said else f"status {status}: {said[-600:]}"
        problem = problem or resumed(run_dir, unbroken, *overrides, at(there.start()[0]))
        yield "all servers go for good, the run is gone on with", problem


def ahead(folder: Path) -> Iterator[Case]:
    folder.mkdir()
    overrides = (*REMOTE, "rollout.ahead=1")
    unbroken, stopped, lost = (folder / name for name in ("unbroken", "stopped", "lost"))
    with servers() as there:
        address = at(there.start()[0])
        if problem := unbroken_run(unbroken, *overrides, address):
            yield "unbroken run, one step ahead", problem
            return
        process = start(stopped, *overrides, address)
        wait_for(lambda: steps_done(stopped) >= 5, process)
        process.send_signal(signal.SIGTERM)
        status = process.wait(300)
        problem = None if status == 128 + signal.SIGTERM else f"status {status}: {words(stopped)[-600:]}"
        yield "one step ahead: SIGTERM", problem or resumed(stopped, unbroken, *overrides, address)
    with servers() as there:
        address, server = there.start("exit")
        process = start(lost, *overrides, at(address))
        wait_for(lambda: server.poll() is not None, process)
        there.start(port=int(address.rpartition(":")[2]))
        status, said = process.wait(300), words(lost)
        fine = status == 0 and "the weights are pushed again" in said  # newer ones: it is not the unbroken run
        yield "one step ahead: the server ends, and is started again", None if fine else f"{status}: {said[-600:]}"


def ended(process: subprocess.Popen[str], run_dir: Path, unbroken: Path) -> str | None:
    """Return what is wrong with how a run has ended, if anything."""
    if status := process.wait(600):
        return f"status {status}: {words(run_dir)[-600:]}"
    if "rollout server" not in words(run_dir):
        return "nothing has happened: no server was missed"
    return difference(run_dir, unbroken)


def push_others(address: str) -> None:
    """Push weights that are not those of the run."""
    policy = Policy(load_model(str(TINY), device="cpu"), Processor.from_folder(TINY, NO_FRAMES, 900))
    with torch.no_grad():
        policy.module.lm_head.weight.mul_(-1)
    other = RemoteRollout(
        policy, [Server(address)], max_rows=1, max_completion_tokens=64, timeout_s=60, patience_s=60
    )
    other.sync(policy)


if __name__ == "__main__":
    main("engine", cases, settings=(("local", 1), *sharded()))
