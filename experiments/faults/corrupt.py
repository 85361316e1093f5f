"""Every file of a checkpoint flipped, truncated, emptied and deleted: refused by name, the one before is used.

    python -m experiments.faults.corrupt [--json FILE] [--engine zero3 --nproc 2]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, Iterator, Mapping

from experiments.faults.harness import STEPS, Case, Options, main, overrides_of, resumed, sharded, unbroken_run, words
from vidbridge.runtime.checkpoint import MANIFEST, newest


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


def cases(folder: Path, options: Options) -> Iterator[Case]:
    for engine, nproc in options.settings:
        overrides = overrides_of(engine, nproc)
        unbroken = folder / f"unbroken_{engine}"
        if problem := unbroken_run(unbroken, *overrides):
            yield "unbroken run", problem
            continue
        last = unbroken / "checkpoints" / f"step_{STEPS:06d}"
        names = sorted(str(path.relative_to(last)) for path in last.rglob("*") if path.is_file())
        for name in names:
            for damage, apply in DAMAGE.items():
                copy = folder / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(unbroken / "checkpoints", copy)
                apply(copy / last.name / name)
                yield f"{engine} x {nproc}: {name} {damage}", problem_of(copy, name)
        # and once through the front door
        again = folder / f"again_{engine}"
        shutil.copytree(unbroken, again)
        flip(again / "checkpoints" / last.name / names[0])
        problem = resumed(again, unbroken, *overrides)
        if not problem and f"refused {last.name}: {names[0]}" not in words(again):
            problem = f"it was not refused: {words(again)[-600:]}"
        yield f"{engine} x {nproc}: train.py resume=auto, {names[0]} with one bit flipped", problem


def problem_of(checkpoints: Path, name: str) -> str | None:
    found, refused = newest(checkpoints)
    if found is None or found.step != STEPS - 2:
        return f"the one before was not used, but {found.path.name if found else 'none'}"
    # a manifest with a flipped bit accuses a file, or itself
    if not refused or (name not in refused[0] and name != MANIFEST):
        return f"it was refused without naming the file: {refused}"
    return None


if __name__ == "__main__":
    main("corrupt", cases, settings=(("local", 1), *sharded()))
