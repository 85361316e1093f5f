"""Two real processes that meet over gloo, as the launcher starts them."""

import gc
import os
import socket

import torch
import torch.multiprocessing

from tests.doors import FORKS
from vidbridge.runtime import collectives


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def on_ranks(body, *arguments, num_ranks=2):
    """Call ``body(*arguments)`` on every rank; an error of a rank is raised here. What they find out goes to files."""
    torch.multiprocessing.start_processes(
        _rank, (num_ranks, free_port(), body, arguments), nprocs=num_ranks, start_method=FORKS.get_start_method()
    )


def _rank(rank, num_ranks, port, body, arguments):
    gc.freeze()  # DeepSpeed collects garbage for every engine: what was imported need not be looked through again
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in where.items()})
    torch.set_num_threads(1)
    collectives.init(torch.device("cpu"), timeout_s=120)
    try:
        body(*arguments)
    finally:
        collectives.destroy()
