"""Proxy tasks as files: each row's video cut and written, with the rows beside it and a manifest of hashes."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from vidbridge.data.loader import BAD_SAMPLES, BadSamples
from vidbridge.data.rows import write_rows
from vidbridge.data.tools.job import Job
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.write import encode_png, write_mp4
from vidbridge.runtime.progress import track
from vidbridge.tasks.rows import Row, TaskRows

MANIFEST = "manifest.json"


def materialise(job: Job, *, fps: int) -> None:
    """``<split>.jsonl`` with all tasks, ``videos/``, manifest.json. A second run makes only what is not there yet."""
    folder = job.folder
    bad = BadSamples(folder / BAD_SAMPLES, job.dataset.max_bad_frac)
    rows: dict[str, list[Row]] = {}
    for split, task in job.filled():
        indices = job.indices(task)

        def made(index: int, task: TaskRows = task, split: str = split) -> Row | None:
            sample = task.sample(index)
            if not bad.passes(sample):
                return None
            try:
                return write_row(task, index, folder / "videos" / split / task.name / f"{index:06d}", fps)
            except ValueError as error:
                bad.add(sample, error)
                return None

        with ThreadPoolExecutor(job.dataset.reader.width) as pool:
            all_made = track(pool.map(made, indices), f"{split} {task.name}", len(indices))
            rows.setdefault(split, []).extend(row for row in all_made if row is not None)
    for split, found in rows.items():
        write_rows(found, folder / f"{split}.jsonl")
    files = track(sorted([*folder.rglob("*.mp4"), *folder.rglob("*.png")]), "hashes")
    hashes = {str(path.relative_to(folder)): sha256(path) for path in files}
    hashes |= {path.name: sha256(path) for path in sorted(folder.glob("*.jsonl"))}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    print(f"written: {folder}, {sum(map(len, rows.values()))} rows, {bad.num_bad} left out")


def write_row(task: TaskRows, index: int, stem: Path, fps: int) -> Row:
    """The row with its video as the model would see it, at the full frame rate ``fps`` and its own size.

    The video is ``stem``.mp4, images are ``stem``_1.png and so on, upright and in their own size.
    """
    sample = task.sample(index)
    stem.parent.mkdir(parents=True, exist_ok=True)
    whole = FrameBudget(fps=float(fps), max_frames=10**6, min_pixels=1, max_pixels=10**9)
    images = [stem.with_name(f"{stem.name}_{number}.png") for number in range(1, len(sample.images) + 1)]
    for image, path in zip(sample.images, images):
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_bytes(encode_png(task.read(image, whole)))
            partial.replace(path)
    video_path = stem.with_suffix(".mp4")
    for video in sample.videos:
        if not video_path.exists():
            write_mp4(task.read(video, replace(whole, multiple=2)), video_path, fps=fps)
    return Row(
        uid=sample.uid,
        problem=sample.question,
        solution=f"<answer>{sample.answer}</answer>",
        video=str(video_path) if sample.videos else "",
        images=tuple(map(str, images)),
        problem_type=task.task.problem_type,
        options=sample.options,
        rationale=sample.meta.get("rationale", ""),
        meta={key: value for key, value in sample.meta.items() if key != "rationale"},
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
