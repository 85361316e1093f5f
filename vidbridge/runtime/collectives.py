"""The ranks of a run and what they tell each other. With one process everything here is free."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar, cast

import torch
import torch.distributed as distributed

from vidbridge.errors import RankFailed

T = TypeVar("T")
_leaving: list[Callable[[], None]] = []


def init(device: torch.device, timeout_s: float) -> None:
    """Meet the other ranks of an environment made by torchrun or our launcher: gloo between CPUs, nccl between GPUs.

    A collective that waits longer than ``timeout_s`` fails instead of hanging.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where nccl puts what is not a tensor
        distributed.init_process_group(_backend(device), timeout=timedelta(seconds=timeout_s))


def init_single(device: torch.device) -> None:
    """Make a process group of one, for a library that needs one even on a single process."""
    if not distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        distributed.init_process_group(_backend(device), store=distributed.HashStore(), rank=0, world_size=1)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def before_leaving(close: Callable[[], None]) -> None:
    """Have ``close`` called once, before the ranks part: of a library that has made groups of its own."""
    _leaving.append(close)


def destroy() -> None:
    """Leave the other ranks, who do so too."""
    while _leaving:
        _leaving.pop()()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_rank_0() -> bool:
    return rank() == 0


def local_rank() -> int:
    """The number of this rank on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """The sum of each value over the ranks, in 64 bits."""
    if world_size() == 1:
        return list(values)
    device = torch.device("cuda", local_rank()) if distributed.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    return tensor.tolist()


def all_reduce_sum_(tensor: torch.Tensor) -> None:
    """The sum of this tensor over the ranks, in its place."""
    if world_size() > 1:
        distributed.all_reduce(tensor)


def all_reduce_max(values: Mapping[str, float]) -> dict[str, float]:
    """The largest value of any rank under each name; all ranks have the same names."""
    all_values = all_gather(values)
    return {name: max(each[name] for each in all_values) for name in values}


def all_gather(value: T, group: Any = None) -> list[T]:
    """Return what every rank holds, in the order of ranks; for small things that can be pickled.

    With a ``group`` of ``torch.distributed``, the ranks of that group alone.
    """
    number = world_size() if group is None else distributed.get_world_size(group)
    if number == 1:
        return [value]
    values: list[Any] = [None] * number
    distributed.all_gather_object(values, value, group=group)
    return values


def on_rank_0(call: Callable[[], T]) -> T:
    """Return on all ranks what ``call`` gives on the first one, or raise its error on all; called by all."""
    value: T | None = None
    failed: Exception | None = None
    if is_rank_0():
        try:
            value = call()
        except Exception as error:
            failed = error
    value, failed = all_gather((value, failed))[0]
    if failed is not None:
        raise failed
    return cast(T, value)


def raise_together(error: Exception | None, group: Any = None) -> None:
    """All ranks (of ``group``) go on, or all raise: their own error, or RankFailed with that of the first that has one.

    Called at the same place by all, so that none waits in a collective for one that has left.
    """
    told = None
    if error is not None:
        told = str(error) if isinstance(error, RankFailed) else f"rank {rank()} failed: {type(error).__name__}: {error}"
    messages = all_gather(told, group)
    if error is not None:
        raise error
    for message in messages:
        if message is not None:
            raise RankFailed(message)


def is_lost_connection(error: BaseException) -> bool:
    """This rank is fine, but another has gone without agreeing on it."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


@contextmanager
def fail_together(group: Any = None) -> Iterator[None]:
    """A part in which a rank may fail alone and waits for no other: all (of ``group``) fail at its end, or none."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    raise_together(error, group)


def gather_by_index(own: Mapping[int, T], lighten: Callable[[T], T]) -> list[T]:
    """The things of all ranks in the order of their numbers; those of others come as ``lighten`` makes them."""
    others = all_gather({number: lighten(thing) for number, thing in own.items()}) if world_size() > 1 else []
    everything = {number: thing for part in others for number, thing in part.items()} | dict(own)
    assert not others or len(everything) == sum(map(len, others)), "each thing is worked on by one rank"
    return [everything[number] for number in sorted(everything)]


def my_share(num: int, cost: Callable[[int], float]) -> list[int]:
    """Return which of ``num`` things this rank works on, rising, so that all ranks end at about the same time.

    Every rank must know the same costs, which are asked for only where there is something to share.
    """
    if world_size() == 1:
        return list(range(num))
    return sorted(deal([cost(number) for number in range(num)], world_size())[rank()])


def local_rank_0_first(make: Callable[[], T]) -> T:
    """``make()`` on the first rank of each machine, then on its others, which find on the disk what the first made."""
    made: list[T] = []
    for turn in (True, False):
        with fail_together():
            if (local_rank() == 0) is turn:
                made.append(make())
    return made[0]


def deal(costs: Sequence[float], num_hands: int) -> list[list[int]]:
    """Indices of things for each of ``num_hands``, so that their costs come out about even and their numbers equal.

    The dearest first, each to the hand that has least among those with room: ceil(n / hands) things a hand. None is
    empty that need not be.

    >>> deal([5, 1, 1, 5], num_hands=2)
    [[0, 1], [3, 2]]
    """
    room = -(-len(costs) // num_hands)
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    spent = [0.0] * num_hands
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        with_room = [hand for hand in range(num_hands) if len(hands[hand]) < room]
        hand = min(with_room, key=lambda hand: (spent[hand], len(hands[hand])))
        hands[hand].append(index)
        spent[hand] += costs[index]
    return hands
