"""Every file of a checkpoint flipped, truncated, emptied and deleted: refused by name, the one before is used.

    python -m experiments.faults.corrupt [--json FILE]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, Iterator, Mapping

from experiments.faults.harness import STEPS, difference, main, run, words
from vidbridge.checkpoint import newest


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: Mapping[str, Callable[[Path], object]] = {
    "one bit flipped": flip,
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def cases(folder: Path) -> Iterator[tuple[str, str | None]]:
    unbroken = folder / "unbroken"
    if run(unbroken) != 0:
        yield "unbroken run", "it failed by itself"
        return
    last = unbroken / "checkpoints" / f"step_{STEPS:06d}"
    for name in sorted(str(path.relative_to(last)) for path in last.rglob("*") if path.is_file()):
        for damage, apply in DAMAGE.items():
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(unbroken / "checkpoints", copy)
            apply(copy / last.name / name)
            found, refused = newest(copy)
            problem = None
            if found is None or found.step >= STEPS:
                problem = "it was accepted"
            elif not refused or (name not in refused[0] and name != "manifest.json"):
                problem = f"it was refused without naming the file: {refused}"
            yield f"{name} {damage}", problem
    # and once through the front door
    flip(last / "engine.safetensors")
    again = folder / "again"
    shutil.copytree(unbroken, again)
    status = run(again, "resume=auto")
    refused_by_name = f"refused {last.name}: engine.safetensors" in words(again)
    problem = None if status == 0 and refused_by_name else f"status {status}: {words(again)[-300:]}"
    yield "train.py resume=auto on a damaged folder", problem or difference(again, unbroken)


if __name__ == "__main__":
    main("corrupt", cases)
