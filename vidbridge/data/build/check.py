"""Every row and every video looked at once: what is wrong where, how much there is of what, what splits share."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, Mapping

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from vidbridge.data.base import Dataset
from vidbridge.data.build.options import Options, filled_tasks
from vidbridge.media.video_file import VideoError
from vidbridge.tasks.base import DataError, Task
from vidbridge.types import Montage, Sample

PROBLEMS, SUMMARY, HISTOGRAMS = "problems.txt", "check.json", "check.png"
_MAX_TOLD = 20


def check(dataset: Dataset, tasks: Mapping[str, Task], options: Options) -> None:
    """Writes problems.txt, check.json and check.png; DataError with ``strict`` when there is a problem."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    dataset = dataset.lenient()
    problems: list[str] = list(dataset.row_problems())
    for split, task in filled_tasks(dataset, tasks):
        number = min(len(task), options.number or len(task))
        samples[split, task.name] = [task.sample(index) for index in range(number)]
    if not samples:
        raise DataError("no task has a row in any split")
    videos = sorted({path for group in samples.values() for sample in group for path in paths_of(sample)})
    durations: dict[str, float] = {}
    with ThreadPoolExecutor(dataset.reader.width) as pool:
        for path, result in track(pool.map(_probe(dataset), videos), total=len(videos), description="videos"):
            if isinstance(result, VideoError):
                problems.append(str(result))
            else:
                durations[path] = result
    shared = list(overlaps(samples))
    problems += shared
    summary = {
        "rows": {f"{split}/{task}": len(group) for (split, task), group in samples.items()},
        "videos": len(videos),
        "unreadable": len(videos) - len(durations),
        "repeated_rows": repeated(samples),
        "problems": len(problems),
    }
    (options.folder / PROBLEMS).write_text("".join(f"{line}\n" for line in problems), encoding="utf-8")
    (options.folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(samples, durations).savefig(options.folder / HISTOGRAMS, dpi=110)
    console = Console()
    console.print_json(data=summary)
    for line in problems[:_MAX_TOLD]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"all of it: {options.folder}")
    if problems and options.strict:
        raise DataError(f"{len(problems)} problems, all in {options.folder / PROBLEMS}")


def paths_of(sample: Sample) -> set[str]:
    parts = [part for video in sample.videos for part in (video.parts if isinstance(video, Montage) else (video,))]
    return {part.path for part in parts}


def overlaps(samples: Mapping[tuple[str, str], list[Sample]]) -> Iterator[str]:
    """Videos that more than one split shows."""
    splits: dict[str, set[str]] = defaultdict(set)
    for (split, _), group in samples.items():
        for sample in group:
            for path in paths_of(sample):
                splits[path].add(split)
    for path, found in sorted(splits.items()):
        if len(found) > 1:
            yield f"{path}: is in {' and '.join(sorted(found))}"


def repeated(samples: Mapping[tuple[str, str], list[Sample]]) -> int:
    """Rows that ask the same about the same video as another one."""
    asked = Counter((s.task, s.question, tuple(sorted(paths_of(s)))) for group in samples.values() for s in group)
    return sum(count - 1 for count in asked.values())


def draw(samples: Mapping[tuple[str, str], list[Sample]], durations: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    rows, seconds, words = figure.subplots(1, 3)
    rows.barh([f"{split} {task}" for split, task in samples], [len(group) for group in samples.values()])
    rows.set_title("rows")
    seconds.hist(list(durations.values()), bins=40)
    seconds.set_title("seconds of the videos")
    for task in dict.fromkeys(task for _, task in samples):
        lengths = [len(s.answer.split()) for (_, name), group in samples.items() if name == task for s in group]
        words.hist(lengths, bins=40, histtype="step", label=task)
    words.set_title("words of the answers")
    words.legend(fontsize="small")
    return figure


def _probe(dataset: Dataset) -> Callable[[str], tuple[str, float | VideoError]]:
    def probe(path: str) -> tuple[str, float | VideoError]:
        try:
            return path, dataset.reader.duration_s(path)
        except VideoError as error:
            return path, error

    return probe
