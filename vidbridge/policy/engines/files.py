"""The weights of a checkpoint, read without the engine that wrote it: to be evaluated, not trained on.

LocalEngine writes every weight whole, as ``weight.<name>``. DeepSpeedEngine writes a file a rank with flat parts,
``weight.<number>``, and in its metadata the pieces that a part is made of, as JSON:
[[[name, first number in the weight, first number in the part, how many], ..] of each part].
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
from safetensors import safe_open
from torch import nn

WHOLE = "engine.safetensors"
PIECES = "pieces"  # key of the metadata
Piece = tuple[str, int, int, int]


def rank_file(rank: int) -> str:
    return f"engine_rank{rank}.safetensors"


@torch.no_grad()
def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy the weights in ``folder`` into ``module``: of any engine and number of ranks, on one process or many.

    What was not trained keeps the values it has. Optimizer state is not read. ValueError when a weight that ``module``
    trains is not all there, and for a weight that it does not have.
    """
    weights = dict(module.named_parameters())
    found: Counter[str] = Counter()
    for path in engine_files(folder):
        with safe_open(path, framework="pt") as file:
            for name, first, values in _pieces(file, path):
                if name not in weights or first + len(values) > weights[name].numel():
                    raise ValueError(f"{path} holds {name}, which does not fit the model: is it of this run?")
                weights[name].view(-1)[first : first + len(values)].copy_(values)
                found[name] += len(values)
    check_all_there(folder, {name: found[name] for name, weight in weights.items() if weight.requires_grad}, weights)


def check_all_there(folder: Path, found: dict[str, int], weights: dict[str, nn.Parameter]) -> None:
    """ValueError naming the first weight of which fewer numbers were ``found`` than it has."""
    if lacking := [name for name, number in found.items() if number != weights[name].numel()]:
        raise ValueError(
            f"the checkpoint {folder} lacks {lacking[0]} (and {len(lacking) - 1} more), which this model trains: "
            f"set model.frozen and model/adapter to what they were"
        )


def engine_files(folder: Path) -> Sequence[Path]:
    """Return the files that the engines of all ranks have written; ValueError names the one that is missing."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    first = folder / rank_file(0)
    if not first.exists():
        raise ValueError(f"{folder} holds neither {WHOLE} nor {first.name}: no engine has written it")
    with safe_open(first, framework="pt") as file:
        ranks = int(file.metadata()["ranks"])
    paths = [folder / rank_file(rank) for rank in range(ranks)]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is missing: {ranks} ranks wrote this checkpoint")
    return paths


def _pieces(file: Any, path: Path) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yield (name of a weight, where in it the numbers go, the numbers [n])."""
    if path.name == WHOLE:
        for key in file.keys():
            if key.startswith("weight."):
                yield key.removeprefix("weight."), 0, file.get_tensor(key).flatten()
        return
    if PIECES not in file.metadata():
        raise ValueError(f"{path} does not say which weights it holds: an older vidbridge wrote it; resume it once")
    for number, pieces in enumerate(json.loads(file.metadata()[PIECES])):
        part = file.get_slice(f"weight.{number}")
        for name, first, offset, count in pieces:
            yield name, first, part[offset : offset + count]


def piece_of(name: str, *, weight: tuple[int, int], share: tuple[int, int], at: int = 0) -> list[Piece]:
    """Return the piece of a weight that lies in a rank's share, both [first, end) in one row of numbers; or none.

    The share begins at number ``at`` of the rank's part.

    >>> piece_of("w", weight=(6, 16), share=(10, 20))
    [('w', 4, 0, 6)]
    >>> piece_of("w", weight=(0, 10), share=(10, 20))
    []
    """
    first, end = max(weight[0], share[0]), min(weight[1], share[1])
    return [(name, first - weight[0], at + first - share[0], end - first)] if first < end else []
