"""The processes of a run with many ranks: how they start here, how they end, and the one message about why.

``nproc=8`` starts the ranks of one machine, through torch elastic. Where something else starts them, on several
machines or on a cluster, each finds RANK and WORLD_SIZE in its environment, as torchrun and deepspeed put them there.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Iterator, NoReturn, Sequence, TypeVar

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vidbridge.config.schema import RunConfig
from vidbridge.errors import ConfigError
from vidbridge.runtime import collectives
from vidbridge.runtime.cores import usable

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_MAX_LAST_WORDS = 8000  # characters of what a rank that died left on its stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a rank ended: the exit status, and what to tell the user about it, if anything.

    ``Ending(status=1, message="error: rows.jsonl:3: field 'video' is missing")``
    """

    status: int
    message: str = ""
    foreseen: bool = True  # False: the message is the traceback of an error that nobody expected
    lost: bool = False  # it failed because another rank did
    at_s: float = field(default_factory=time.time)


def is_rank() -> bool:
    """This process is one of the ranks of a run, whoever started them."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def end(status: int) -> NoReturn:
    """Exit. A rank that failed does it at once: what its threads wait for may be gone with another rank."""
    if status and is_rank():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """Together with the other ranks of this run, where there are others."""
    if is_rank():
        die_with_parent()
        collectives.init(own_device(config.model.device), config.hang_s)
    yield
    collectives.destroy()  # only after success: with a rank gone it could wait for ever, and the process ends anyway


def own_device(device: str) -> torch.device:
    """The kind of device that this rank computes on, and of GPUs its own one, made the current one."""
    if device == "cpu" or not torch.cuda.is_available():  # what else cannot be used is refused when the model is built
        return torch.device("cpu")
    if ":" in device and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(f"model.device={device} is one GPU, but every rank has its own: set it to auto")
    if collectives.local_rank() >= torch.cuda.device_count():
        raise ConfigError(f"there are {torch.cuda.device_count()} GPUs here, too few for a rank each: lower nproc")
    torch.cuda.set_device(collectives.local_rank())
    return torch.device("cuda", collectives.local_rank())


def die_with_parent() -> None:
    """Let the kernel end this process when whoever started it is gone: no orphans, whatever either is doing.

    Only of Linux, and only under our launcher and torchrun, of which it is known that they wait for their ranks.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():  # it was gone before
            os._exit(1)


def start(function: Callable[[T], Ending], argument: T, nproc: int, *, patience_s: float) -> Ending:
    """``function(argument)`` in ``nproc`` new processes; how that ended.

    The first rank has this terminal, the others speak only when they fail. A signal to this process is passed on to
    all, which then have ``patience_s`` to write their checkpoint; when one fails, the others have 30 s to end.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_each(nproc)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(patience_s)))
    logging.disable(logging.CRITICAL)  # torch elastic tells in its own way what is told here in ours
    with TemporaryDirectory(prefix="vidbridge_ranks_") as name:
        folder = Path(name)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            logs_specs=DefaultLogsSpecs(name, redirects={rank: Std.ALL for rank in range(1, nproc)}),
            run_id="vidbridge",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            start_method="spawn",
        )
        try:
            elastic_launch(config, _run_rank)(function, argument, folder)
        except SignalException as stop:
            told = [ending for ending in by_weight(read_endings(folder, nproc)) if ending.foreseen]
            return told[0] if told else Ending(status=128 + stop.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return cause(read_endings(folder, nproc), rank, failure.exitcode, lambda of: last_words(folder, of))
        finally:
            for process in multiprocessing.active_children():  # if a signal came while they were being started
                process.kill()
    return Ending(status=0)


def threads_of_each(nproc: int) -> int:
    """The threads that each of ``nproc`` ranks computes with, unless OMP_NUM_THREADS says otherwise."""
    return max(1, min(torch.get_num_threads(), usable()) // nproc)


def _run_rank(function: Callable[[T], Ending], argument: T, folder: Path) -> None:
    ending = function(argument)
    path = folder / f"ending_{os.environ['RANK']}.json"
    path.write_text(json.dumps(asdict(ending)), encoding="utf-8")
    if ending.lost:
        time.sleep(1.0)  # so that the rank that caused it is noticed first
    if ending.status:
        end(ending.status)


def read_endings(folder: Path, nproc: int) -> list[Ending | None]:
    """Return how each rank ended; None for a rank that could not say so any more."""
    paths = [folder / f"ending_{rank}.json" for rank in range(nproc)]
    return [Ending(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None for path in paths]


def last_words(folder: Path, rank: int) -> str:
    """The end of what a rank wrote to its stderr, as far as that was not the terminal."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob(f"*/*/{rank}/stderr.log")]
    return "".join(texts)[-_MAX_LAST_WORDS:].strip()


def by_weight(endings: Sequence[Ending | None]) -> list[Ending]:
    """Return the endings that say something, the likeliest cause first.

    When a rank fails the others do so too: they hear of it, lose the connection, or are ended. So an error with a
    message for the user comes before a bug, a rank's own error before one that came of another's, then the earlier one.
    """
    told = [ending for ending in endings if ending and ending.message]
    return sorted(told, key=lambda ending: (not ending.foreseen, ending.lost, ending.at_s))


def cause(endings: Sequence[Ending | None], first: int, exitcode: int, words: Callable[[int], str]) -> Ending:
    """Return what to tell of failed ranks, of which ``first`` was noticed first; ``words`` gives a rank's last."""
    told, of_first = by_weight(endings), endings[first]
    if told and told[0].foreseen:
        return told[0]
    if of_first and not of_first.message:  # stopped by a signal
        return of_first
    silent = [rank for rank, ending in enumerate(endings) if ending is None]
    lines = [f"rank {rank} said last:\n{said}" for rank in silent if (said := words(rank))]
    if told and not told[0].lost and of_first:  # who is silent was ended because of it
        lines.append(told[0].message)
    elif silent:
        dead, how = silent[0], "died"
        if of_first is None:
            dead = first
            how = f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with status {exitcode}"
        lines.append(f"error: rank {dead} {how}, so all were ended; resume=auto goes on from the last checkpoint")
    else:
        lines.append(told[0].message)
    return Ending(status=1, message="\n".join(lines))
