"""Reading videos: 16 frames out of many, the cache, waiting for data in training, and opening a large JSONL file.

    python -m experiments.bench.decode --json figures.json

Against decoding everything, and against the reader of qwen-vl-utils where it can be imported (its decord reads then).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

import av
import numpy as np

from experiments.bench.harness import CONSOLE, arguments, finish, medians, number, show
from vidbridge.media.decode import decode, resized
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.reader import VideoReader
from vidbridge.types import VideoRef

ROOT = Path(__file__).parents[2]
PAPER = FrameBudget(fps=None, max_frames=16, min_pixels=128 * 28 * 28, max_pixels=196 * 28 * 28, multiple=28)
FPS = 24
# A step of the demo, without the evaluations around it.
DEMO = ["task_mix=proxy", "track=none", "eval.every=0", "eval.num_items=1", "eval.num_samples=1", "checkpoint.every=0"]
FEW = ["prompts_per_step=2", "data.num_rows={train: 4, val: 1, test: 1}"]


@dataclass(frozen=True)
class File:
    seconds: int
    gop: int  # frames from one key frame to the next
    size: tuple[int, int] = (480, 270)  # width, height

    @property
    def name(self) -> str:
        return f"{self.seconds} s, a key frame every {self.gop / FPS:.1f} s"


FULL = [File(30, 24), File(30, 240), File(600, 24), File(600, 240)]
QUICK = [File(2, 12, (64, 36)), File(4, 12, (64, 36))]


def write(file: File, path: Path) -> None:
    """Noise that wanders, so that frames differ and can still be predicted."""
    width, height = file.size
    noise = np.random.default_rng(0).integers(0, 255, (height // 6, width // 6, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": str(file.gop)})
        stream.height, stream.width = noise.shape[:2]
        stream.pix_fmt = "yuv420p"
        for at in range(file.seconds * FPS):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, (at, 2 * at), (0, 1)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def full_decode(path: Path) -> np.ndarray:
    """All frames are decoded and those that are wanted kept, as readers do that do not seek."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration is not None and stream.time_base is not None
        wanted = iter(PAPER.times(float(stream.duration * stream.time_base)))
        time_s, pixels = next(wanted), []
        for frame in container.decode(stream):
            while time_s is not None and frame.time is not None and frame.time + 1 / FPS > time_s:
                pixels.append(resized(frame.to_ndarray(format="rgb24"), PAPER.size(frame.height, frame.width, 16)))
                time_s = next(wanted, None)
    return np.stack(pixels)


def their_reader() -> Callable[[Path], Any] | None:
    """qwen-vl-utils' ``fetch_video`` with the same number of frames and pixels; None, and why, where it is not there.

    Its frames are others: the first and the last one belong to them.
    """
    try:
        from qwen_vl_utils import fetch_video
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        CONSOLE.print(f"qwen-vl-utils cannot be imported here, its reader is left out: {error}")
        return None
    pixels = {"min_pixels": PAPER.min_pixels, "max_pixels": PAPER.max_pixels}
    return lambda path: fetch_video({"video": str(path), "nframes": PAPER.max_frames, **pixels})


def cache_seconds(path: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Through the processes that read in training: not in the cache yet, and in it."""
    reader = VideoReader(str(path.parent), workers=1, cache=str(folder), cache_gb=1.0)

    def cold() -> None:
        for entry in folder.glob("*/*"):
            entry.unlink()
        reader(VideoRef(path=path.name), PAPER)

    return medians({"cold": cold, "warm": partial(reader, VideoRef(path=path.name), PAPER)}, repeats)


def waiting(folder: Path, steps: int, *overrides: str) -> dict[str, float]:
    """The part of a step's time in the demo in which it waits for data; the first steps are left out."""
    command = [sys.executable, "train.py", *DEMO, f"steps={steps}", f"hydra.run.dir={folder}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "time/step_s" in line][1:]
    data_s, step_s = (sum(line[f"time/{name}_s"] for line in timed) for name in ("data", "step"))
    return {"wait_frac": data_s / step_s, "step_s": step_s / len(timed)}


def opening(path: Path, num_rows: int) -> dict[str, float]:
    row = {"problem": "Describe the video.", "problem_type": "caption"}
    with path.open("w", encoding="utf-8") as file:
        for at in range(num_rows):
            solution = f"<answer>A person opens box {at} and takes something out of it.</answer>"
            file.write(json.dumps({**row, "solution": solution, "video": f"clips/{at}.mp4"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.open_rows", str(path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def times_ours(row: dict[str, Any]) -> float | None:
    """How much longer the reader of qwen-vl-utils takes."""
    return row["qwen_vl_utils_s"] / row["ours_s"] if "qwen_vl_utils_s" in row else None


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    read = [
        (
            row["file"],
            f"{row['ours_s']:.3f}",
            f"{row['full_s']:.3f}",
            f"{row['full_s'] / row['ours_s']:.1f}",
            number(row.get("qwen_vl_utils_s"), ".3f"),
            number(times_ours(row), ".1f"),
        )
        for row in rows
    ]
    show("seconds for 16 frames", ("file", "ours", "all decoded", "times", "qwen-vl-utils", "times"), read)
    kept = [
        (row["file"], f"{row['cold_s']:.4f}", f"{row['warm_s']:.4f}", f"{row['cold_s'] / row['warm_s']:.0f}")
        for row in rows
    ]
    show("through a process and the cache", ("file", "cold", "warm", "times"), kept)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments("reading videos: ours against decoding everything", repeats=3).parse_args(argv)
    files, steps, num_rows = (QUICK, 3, 1000) if args.quick else (FULL, 20, 1_000_000)
    theirs = their_reader()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for index, file in enumerate(files):
            path = folder / f"{index}.mp4"
            write(file, path)
            ours = decode(VideoRef(path=str(path)), PAPER).frames
            assert np.array_equal(ours, full_decode(path)), "the frames are the same"
            sides: dict[str, Callable[[], Any]] = {
                "ours": partial(decode, VideoRef(path=str(path)), PAPER),
                "full": partial(full_decode, path),
            }
            if theirs is not None:
                assert theirs(path).shape[:2] == (PAPER.max_frames, 3) and theirs(path).shape[2:] == ours.shape[1:3]
                sides["qwen_vl_utils"] = partial(theirs, path)
            seconds = medians(sides, args.repeats) | cache_seconds(path, folder / f"cache{index}", args.repeats)
            rows.append({"file": file.name, **{f"{name}_s": value for name, value in seconds.items()}})
        started = time.monotonic()
        opened = opening(folder / "rows.jsonl", num_rows)
        CONSOLE.print(f"written and opened {num_rows} rows in {time.monotonic() - started:.0f} s")
        trained = waiting(folder / "run", steps, *([*FEW, f"paths.cache={folder}"] if args.quick else []))
    show_rows(rows)
    CONSOLE.print(
        f"waits for data: {trained['wait_frac']:.2%} of a step of {trained['step_s']:.2f} s; "
        f"{opened['rows']} rows open in {opened['seconds']:.1f} s and {opened['peak_mb']:.0f} MB"
    )
    long = rows[-2:] if not args.quick else rows[-1:]
    figures = {
        "vs_full_decode": min(row["full_s"] / row["ours_s"] for row in long),  # of the long files
        "vs_qwen_vl_utils": None if theirs is None else [times_ours(row) for row in rows],
        "warm_vs_cold": min(row["cold_s"] / row["warm_s"] for row in rows),
        **trained,
        "opening": opened,
        "rows": rows,
    }
    finish(figures, args)


if __name__ == "__main__":
    main()
