"""Damaged videos: bytes changed, parts missing, other files behind them. No crash, no hang, no wrong frame.

    python -m experiments.faults.decode_fuzz [--number 2000] [--seed 0] [--json FILE]

Each is read by a process as in training. A frame that passes as good must be the one that belongs there, or the one
that a reader shows which decodes everything from the first frame to the last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
import numpy as np

from experiments.faults.numbered import Made, Spec, make, number_of, plain
from vidbridge.errors import VideoError
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.pool import WorkerPool
from vidbridge.types import VideoRef

DEADLINE_S = 20.0
BUDGET = FrameBudget(fps=None, max_frames=20, min_pixels=1, max_pixels=1)
FILES = (
    Spec("mp4", "libx264", "b_frames"), Spec("mp4", "libx264", "edit_list"), Spec("mp4", "libx264", "late"),
    Spec("mp4", "libx265", "b_frames"), Spec("mp4", "libsvtav1", "plain"), Spec("mp4", "mpeg4", "plain"),
    Spec("fragmented.mp4", "libx264", "b_frames"), Spec("mov", "libx264", "rotation"), Spec("mov", "mjpeg", "plain"),
    Spec("mkv", "libx264", "open_gop"), Spec("mkv", "libx264", "late"), Spec("mkv", "libx265", "b_frames"),
    Spec("webm", "libvpx-vp9", "plain"), Spec("webm", "libvpx", "longer_sound"), Spec("avi", "libx264", "b_frames"),
    Spec("avi", "mpeg4", "plain"), Spec("ts", "libx264", "b_frames"), Spec("ts", "mpeg2video", "plain"),
    Spec("mpg", "mpeg2video", "plain"), Spec("flv", "libx264", "b_frames"), Spec("flv", "flv", "plain"),
    Spec("wmv", "wmv2", "plain"), Spec("ogv", "vp8", "plain"), Spec("gif", "gif", "plain"),
)  # fmt: skip
UNNAMED = ("crashed", "deadline")  # reasons that say nothing about the file
# The codec has no checks: what a damaged picture looks like depends on what was in memory.
UNCHECKED = ("libvpx", "vp8")
# An AVI stores no times: after a picture that the decoder swallowed without a word the others are early by one.
UNTIMED = ("avi",)


def damaged(content: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What was done to ``content``, and the result."""
    changed = bytearray(content)
    size = len(content)
    match int(rng.integers(6)):
        case 0:
            for index in rng.integers(size, size=(count := int(rng.integers(1, 9)))):
                changed[index] ^= 1 << int(rng.integers(8))
            return f"{count} bits", bytes(changed)
        case 1:
            start, length = int(rng.integers(size)), int(rng.integers(1, 600))
            changed[start : start + length] = rng.bytes(len(changed[start : start + length]))
            return f"{length} random bytes at {start}", bytes(changed)
        case 2:  # headers are a small part of a file, and the worst one
            for index in rng.integers(min(size, 1200), size=(count := int(rng.integers(1, 5)))):
                changed[index] = int(rng.choice([0, 1, 127, 128, 255]))
            return f"{count} bytes of the header", bytes(changed)
        case 3:
            return f"cut at {(end := int(rng.integers(size)))}", content[:end]
        case 4:
            start, length = int(rng.integers(size)), int(rng.integers(1, size // 4))
            return f"{length} bytes missing at {start}", content[:start] + content[start + length :]
    start = int(rng.integers(len(other)))
    return f"{len(other) - start} bytes of another file behind", content + other[start:]


class SecondReader:
    """``numbered.plain`` in a process that may crash or hang."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1)

    def read(self, path: Path) -> tuple[list[float], list[int]] | None:
        try:
            return self._pool.submit(plain, path).result(DEADLINE_S)
        except (BrokenProcessPool, TimeoutError):
            for process in (self._pool._processes or {}).values():
                process.kill()
            self._pool = ProcessPoolExecutor(1)
        except (av.FFmpegError, ValueError, IndexError, MemoryError):  # damaged, other text, no video stream, too large
            pass
        return None


def problem_of(path: Path, spec: Spec, made: Made, pool: WorkerPool, second: SecondReader) -> tuple[str | None, str]:
    """What is wrong, and what came of it in a word."""
    try:
        clip = pool.decode(VideoRef(path=str(path)), BUDGET)
    except VideoError as error:
        return (str(error) if error.reason in UNNAMED else None), error.reason
    numbers = [number_of(np.rot90(pixels, -made.turned)) for pixels in clip.frames]
    near = 2 if spec.container in UNTIMED else 0
    wrong = [(time_s, n) for time_s, n in zip(clip.times_s, numbers) if abs(n - made.number_at(time_s)) > near]
    if not wrong:
        return None, "as it was"
    if spec.codec in UNCHECKED:
        return None, "another picture, in a codec without checks"
    read = second.read(path)
    if read is None or not read[0]:
        return None, "read alone"
    order = np.argsort(read[0], kind="stable")
    times_s = np.array(read[0])[order]
    if spec.container in UNTIMED:  # single times are guesses: one frame follows the other
        order = np.arange(len(order))
    for time_s, number in wrong:
        first, last = np.searchsorted(times_s, [time_s - 0.02, time_s + 0.02], side="right") - 1
        indices = np.clip(np.arange(first - near, last + near + 1), 0, len(order) - 1)
        seen = [read[1][order[index]] for index in indices]
        if number not in seen:
            return f"shows {number} at {time_s:.3f} s, the other reader {seen}: {numbers}", "contradicted"
    return None, "as the other reader"


class Fuzz:
    """Damaged files number 0, 1, .. of a seed, each the same for ever."""

    def __init__(self, folder: Path, seed: int = 0, keep: Path | None = None) -> None:
        self.folder, self.seed, self.keep = folder, seed, keep
        self.files = [make(spec, folder) for spec in FILES]
        self._contents = [made.path.read_bytes() for made in self.files]
        self._pool, self._second = WorkerPool(1, deadline_s=DEADLINE_S), SecondReader()

    def __call__(self, number: int) -> tuple[str | None, str]:
        """What is wrong with how the file is read, None if nothing, and what came of it in a word."""
        rng = np.random.default_rng([self.seed, number])
        at = int(rng.integers(len(FILES)))
        how, content = damaged(self._contents[at], self._contents[int(rng.integers(len(FILES)))], rng)
        path = self.folder / f"damaged_{number}{self.files[at].path.suffix}"
        path.write_bytes(content)
        problem, result = problem_of(path, FILES[at], self.files[at], self._pool, self._second)
        if problem and self.keep:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / path.name).write_bytes(content)
        path.unlink()
        return problem and f"{number}: {FILES[at]}, {how}: {problem}", result

    def close(self) -> None:
        self._pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.faults.decode_fuzz")
    parser.add_argument("--number", type=int, default=2000, help="damaged files (2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that failed")
    parser.add_argument("--json", type=Path, help="write the counts here")
    args = parser.parse_args()
    counts, failed = Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="vidbridge_fuzz_") as folder:
        fuzz = Fuzz(Path(folder), args.seed, args.keep)
        for number in range(args.number):
            problem, result = fuzz(number)
            counts[result] += 1
            if problem:
                failed.append(problem)
                print(problem, flush=True)
        fuzz.close()
    for result, count in counts.most_common():
        print(f"{count:6d}  {result}")
    print(f"decode_fuzz: {args.number - len(failed)} of {args.number} survived")
    if args.json:
        report = {"tried": args.number, "survived": args.number - len(failed), "failed": failed, "results": counts}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if failed or not args.number else 0)


if __name__ == "__main__":
    main()
