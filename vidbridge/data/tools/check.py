"""Every row and every video looked at once: what is wrong where, how much there is of what, what splits share."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from vidbridge.data.loader import MIN_ASKED
from vidbridge.data.prompt_length import estimated_tokens
from vidbridge.data.tools.job import Job
from vidbridge.errors import DataError, VideoError
from vidbridge.policy.processor import Processor
from vidbridge.runtime.progress import track
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import ImageRef, Sample, VideoRef

PROBLEMS, SUMMARY, HISTOGRAMS = "problems.txt", "check.json", "check.png"
_MAX_TOLD = 20
_MAX_MEASURED = 2000  # prompts of each task and split, for the histogram of tokens

Samples = Mapping[tuple[str, str], Sequence[Sample]]  # by split and task


def check(job: Job, processor: Processor, *, strict: bool) -> None:
    """Write problems.txt, check.json and check.png.

    DataError when a run would not start on these rows, or would stop because more samples cannot be used than
    ``data.max_bad_frac`` allows; with ``strict`` for any problem.
    """
    refusal: DataError | None = None
    try:
        job.filled()
    except DataError as error:
        refusal = error
        job = replace(job, dataset=job.dataset.lenient())
    problems = list(job.dataset.row_problems([task.task for task in job.tasks.values()]))
    samples: dict[tuple[str, str], list[Sample]] = {}
    asked_for: list[tuple[TaskRows, Sample]] = []
    tokens: dict[str, list[float]] = defaultdict(list)
    filled, lacking = job.rows()
    for split, task in filled:
        samples[split, task.name] = found = [task.sample(index) for index in job.indices(task)]
        asked_for += [(task, sample) for sample in found]
        tokens[task.name] += [estimated_tokens(sample, task, processor) for sample in spread(found)]
    shown = [visual for group in samples.values() for sample in group for visual in sample.shown]
    images = {visual.path for visual in shown if isinstance(visual, ImageRef)}
    videos = sorted({part.path for visual in shown for part in visual.sources if isinstance(part, VideoRef)})
    durations: dict[str, float] = {}
    unusable: list[str] = []
    bad_files: set[str] = set()
    with ThreadPoolExecutor(job.dataset.reader.width) as pool:
        for path, result in track(pool.map(_duration(job), videos), "videos", len(videos)):
            if isinstance(result, VideoError):
                problems.append(str(result))
            else:
                durations[path] = result
        read = pool.map(lambda each: _trouble(each[0], each[1], processor), asked_for)
        for (_, sample), wrong in zip(asked_for, track(read, "samples", len(asked_for)), strict=True):
            if isinstance(wrong, VideoError):
                unusable.append(f"{sample.uid}: {wrong}" if sample.images else str(wrong))
                bad_files |= {path for path in paths_of(sample) if f"/{wrong.path}".endswith(f"/{path}")}
            elif wrong is not None:
                unusable.append(f"{sample.uid}: {wrong}")
    problems += [line for line in dict.fromkeys(unusable) if line not in problems]
    num_bad = len(unusable)
    problems += overlaps(samples)
    asked = {task.task.problem_type for task in job.tasks.values()}
    summary = {
        "rows": {f"{split}/{task}": len(group) for (split, task), group in samples.items()},
        "without_rows": lacking,
        "rows_of_no_task": {name: n for name, n in job.dataset.problem_types().items() if name not in asked},
        "videos": len(videos),
        "images": len(images),
        "unreadable": sum(path not in durations or path in bad_files for path in videos) + len(images & bad_files),
        "unusable_samples": num_bad,
        "hours": round(sum(durations.values()) / 3600, 3),
        "prompt_tokens": {task: round(float(np.mean(lengths)), 1) for task, lengths in tokens.items()},
        "repeated_rows": repeated(samples),
        "problems": len(problems),
    }
    (job.folder / PROBLEMS).write_text("".join(f"{line}\n" for line in problems), encoding="utf-8")
    (job.folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if samples:
        draw(samples, durations, tokens).savefig(job.folder / HISTOGRAMS, dpi=110)
    console = Console(emoji=False)  # a line :100: is no picture
    console.print_json(data=summary)
    for line in problems[:_MAX_TOLD]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"all of it: {job.folder}", soft_wrap=True, highlight=False)
    if not filled:
        assert refusal is not None
        raise refusal
    if refusal is not None:
        raise DataError(f"training would be refused: {len(problems)} problems, all in {job.folder / PROBLEMS}")
    if num_bad > job.dataset.max_bad_frac * max(len(asked_for), MIN_ASKED):
        raise DataError(
            f"{num_bad} of {len(asked_for)} samples cannot be used, more than data.max_bad_frac="
            f"{job.dataset.max_bad_frac:g} allows: a run would stop; all {len(problems)} problems in "
            f"{job.folder / PROBLEMS}"
        )
    if problems and strict:
        raise DataError(f"{len(problems)} problems, all in {job.folder / PROBLEMS}")


def spread(samples: Sequence[Sample]) -> list[Sample]:
    """Return at most as many of them as are measured, evenly spread."""
    indices = np.unique(np.linspace(0, len(samples) - 1, _MAX_MEASURED).astype(int)).tolist()
    return [samples[index] for index in indices]


def paths_of(sample: Sample) -> set[str]:
    return {source.path for visual in sample.shown for source in visual.sources}


def overlaps(samples: Samples) -> Iterator[str]:
    """Videos and images that more than one split shows."""
    splits: dict[str, set[str]] = defaultdict(set)
    for (split, _), group in samples.items():
        for sample in group:
            for path in paths_of(sample):
                splits[path].add(split)
    for path, found in sorted(splits.items()):
        if len(found) > 1:
            yield f"{path}: is in {' and '.join(sorted(found))}"


def repeated(samples: Samples) -> int:
    """Rows that ask the same about the same files as another one."""
    asked = Counter((s.task, s.question, tuple(sorted(paths_of(s)))) for group in samples.values() for s in group)
    return sum(count - 1 for count in asked.values())


def draw(samples: Samples, durations: Mapping[str, float], tokens: Mapping[str, Sequence[float]]) -> Figure:
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    rows, seconds, lengths = figure.subplots(1, 3)
    rows.barh([f"{split} {task}" for split, task in samples], [len(group) for group in samples.values()])
    rows.invert_yaxis()
    rows.set_title("rows")
    seconds.hist(list(durations.values()), bins=40)
    seconds.set_title("seconds of a video")
    edges = np.histogram_bin_edges([number for column in tokens.values() for number in column], bins=40)
    lengths.hist(list(tokens.values()), bins=edges, stacked=True, label=list(tokens))
    lengths.set_title("tokens of a prompt, estimated")
    lengths.legend(fontsize="small")
    return figure


def _duration(job: Job) -> Callable[[str], tuple[str, float | VideoError]]:
    """Return how long a video is, or what is wrong with it."""
    reader = job.dataset.reader

    def duration_s(path: str) -> tuple[str, float | VideoError]:
        try:
            return path, reader.duration_s(path)
        except VideoError as error:
            return path, error

    return duration_s


def _trouble(task: TaskRows, sample: Sample, processor: Processor) -> ValueError | None:
    """Return why a sample cannot be used, read and encoded as training does it.

    Headers may be right and the frames gone, the part that is shown too late, or the prompt too long.
    """
    try:
        processor.encode(task.prompt(sample))
    except ValueError as error:
        return error
    return None
