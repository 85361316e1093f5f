"""From samples to prompts, where what cannot be used is left out by a rule and on record."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Mapping

from vidbridge.media.reader import VideoReader
from vidbridge.media.video_file import VideoError
from vidbridge.policy.processor import Processor
from vidbridge.tasks.base import DataError, Task
from vidbridge.types import EncodedPrompt, Prompt, Sample

FIRST = 100  # samples after which a fraction means something
Loaded = tuple[Sample, Prompt, EncodedPrompt]


class BadSamples:
    """Samples that could not be used: counted, listed in ``path``, never tried again.

    DataError when they are more than ``max_frac`` of all that were asked for; with 0 the first one is too much.
    """

    def __init__(self, path: Path | None = None, max_frac: float = 0.0) -> None:
        self.path, self.max_frac = path, max_frac
        self.num_asked = self.num_bad = 0
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._uids = {json.loads(line)["uid"] for line in lines}  # of the run that this one goes on with

    def passes(self, sample: Sample) -> bool:
        """Whether the sample is worth trying; every sample that is asked for goes through here once."""
        with self._lock:
            self.num_asked += 1
            if sample.uid not in self._uids:
                return True
            self._count(f"{sample.uid} again")
            return False

    def add(self, sample: Sample, error: ValueError) -> None:
        with self._lock:
            if self.max_frac == 0:
                raise DataError(f"{sample.uid}: {error}") from error
            self._uids.add(sample.uid)
            if self.path is not None:
                line = {
                    "uid": sample.uid,
                    "task": sample.task,
                    "reason": error.reason if isinstance(error, VideoError) else "unusable",
                    "detail": str(error),
                }
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._count(f"{sample.uid}: {error}")

    def _count(self, last: str) -> None:
        self.num_bad += 1
        if self.num_bad > self.max_frac * max(self.num_asked, FIRST):
            where = f"; all of them: {self.path}" if self.path is not None else ""
            raise DataError(
                f"{self.num_bad} of {self.num_asked} samples could not be used, more than "
                f"data.max_bad_frac={self.max_frac:g} allows. The last: {last}{where}"
            )


class Loader:
    """Prompts of samples. In the place of a bad one comes the next sample of its task, question and all."""

    def __init__(self, tasks: Mapping[str, Task], processor: Processor, bad: BadSamples | None = None) -> None:
        self.tasks, self.processor, self.bad = tasks, processor, bad or BadSamples()
        readers = [task.read for task in tasks.values() if isinstance(task.read, VideoReader)]
        width = max((reader.width for reader in readers), default=1)
        # threads that wait for the processes which do the work
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="loader") if width > 1 else None

    def load(
        self, samples: Iterable[Sample], prompt: Callable[[Sample], Prompt] | None = None, *, replace: bool = True
    ) -> list[Loaded]:
        """With everything read; this may run beside a training step. Without ``replace`` bad samples are left out."""

        def load_one(sample: Sample) -> Loaded | None:
            return self._first_good(sample, prompt or self._prompt, replace)

        loaded = self._pool.map(load_one, samples) if self._pool else map(load_one, samples)
        return [each for each in loaded if each is not None]

    def metrics(self) -> dict[str, float]:
        return {"data/bad": float(self.bad.num_bad)}

    def _prompt(self, sample: Sample) -> Prompt:
        return self.tasks[sample.task].prompt(sample)

    def _first_good(self, sample: Sample, prompt: Callable[[Sample], Prompt], replace: bool) -> Loaded | None:
        task = self.tasks[sample.task]
        for _ in range(len(task) if replace else 1):
            if self.bad.passes(sample):
                try:
                    shown = prompt(sample)
                    return sample, shown, self.processor.encode(shown)
                except ValueError as error:
                    self.bad.add(sample, error)
            sample = task.sample(sample.index + 1)
        if replace:
            raise DataError(f"not one of the {len(task)} rows of {sample.task} can be used")
        return None
