"""Samples become prompts; those that cannot be used are replaced by others of their task, and listed."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from vidbridge.data.prefetch import one_torch_thread
from vidbridge.data.prompt_length import estimated_tokens
from vidbridge.errors import DataError, VideoError
from vidbridge.media.reader import VideoReader
from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives
from vidbridge.runtime.jsonl_log import append_lines, resumed_lines
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import EncodedPrompt, Prompt, Sample

BAD_SAMPLES = "bad_samples.jsonl"  # in the folder of a run
MIN_ASKED = 100  # the smallest denominator of a fraction of bad samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A sample with all that is needed to answer it."""

    sample: Sample
    prompt: Prompt
    encoded: EncodedPrompt
    num_bad: int = 0  # bad samples that were passed over before this one


@dataclass(slots=True)
class _News:
    """Samples asked for and bad ones on this rank since the last ``share``, with a line for each new bad one."""

    num_asked: int = 0
    num_bad: int = 0
    lines: list[dict[str, str]] = field(default_factory=list)


class BadSamples:
    """Samples that could not be used: counted, listed in ``path``, never tried again.

    DataError when they are more than ``max_frac`` of all that were asked for (of 100 at least), repetitions included;
    with 0 the first one raises and is not listed. Each rank counts by itself until ``share`` adds what the others have
    met; rank 0 writes ``path``.
    """

    def __init__(self, path: Path | None = None, max_frac: float = 0.0) -> None:
        self.path, self.max_frac = path, max_frac
        self._shared_asked = self._shared_bad = 0
        self._news = _News()
        self._lock = threading.Lock()
        lines = [] if path is None else resumed_lines(path)
        self._uids = {line["uid"] for line in lines}  # of the run that this one goes on with

    @property
    def num_asked(self) -> int:
        return self._shared_asked + self._news.num_asked

    @property
    def num_bad(self) -> int:
        return self._shared_bad + self._news.num_bad

    @property
    def uids(self) -> frozenset[str]:
        """Return the uids of all bad samples, of earlier runs in the same folder too."""
        with self._lock:
            return frozenset(self._uids)

    def passes(self, sample: Sample) -> bool:
        """Count the sample, and return False if it is known to be bad; DataError when that makes too many."""
        with self._lock:
            self._news.num_asked += 1
            if sample.uid not in self._uids:
                return True
            self._news.num_bad += 1
            self._check(self.num_asked, self.num_bad, f"{sample.uid} again")
            return False

    def add(self, sample: Sample, error: ValueError) -> None:
        """Record that ``sample`` is bad because of ``error``; DataError when that makes too many."""
        with self._lock:
            if self.max_frac == 0:
                raise DataError(f"{sample.uid}: {error}") from error
            line = {
                "uid": sample.uid,
                "task": sample.task,
                "reason": error.reason if isinstance(error, VideoError) else "unusable",
                "detail": str(error),
            }
            self._news.num_bad += 1
            self._news.lines.append(line)
            self._note(line)
            self._check(self.num_asked, self.num_bad, f"{sample.uid}: {error}")

    def share(self) -> None:
        """Called by all ranks at the same place, after which they know of the same; DataError on all, or on none."""
        with self._lock:
            mine, self._news = self._news, _News()
        everyones = collectives.all_gather(mine)
        with self._lock:
            for news in everyones:
                self._shared_asked += news.num_asked
                self._shared_bad += news.num_bad
                for line in news.lines:
                    self._note(line)
            last = [f"{line['uid']}: {line['detail']}" for news in everyones for line in news.lines][-1:]
            self._check(self._shared_asked, self._shared_bad, *last)

    def _note(self, line: Mapping[str, Any]) -> None:
        if line["uid"] in self._uids:
            return
        self._uids.add(line["uid"])
        if self.path is not None and collectives.is_rank_0():
            append_lines(self.path, [line])

    def _check(self, num_asked: int, num_bad: int, last: str = "one known from before") -> None:
        if num_bad > self.max_frac * max(num_asked, MIN_ASKED):
            where = f"; all of them: {self.path}" if self.path is not None else ""
            raise DataError(
                f"{num_bad} of {num_asked} samples could not be used, more than "
                f"data.max_bad_frac={self.max_frac:g} allows. The last: {last}{where}"
            )


class Loader:
    """Read the prompts of samples. A bad one is replaced by the next sample of its task, question and all."""

    def __init__(self, tasks: Mapping[str, TaskRows], processor: Processor, bad: BadSamples | None = None) -> None:
        self.tasks, self.processor, self.bad = tasks, processor, bad or BadSamples()
        readers = [task.read for task in tasks.values() if isinstance(task.read, VideoReader)]
        width = max((reader.width for reader in readers), default=1)
        # threads that wait for the processes which do the work
        self._pool = ThreadPoolExecutor(width, "loader", initializer=one_torch_thread) if width > 1 else None

    def own(self, samples: Sequence[Sample]) -> dict[int, Sample]:
        """Return the samples that this rank works on, by their index."""

        def tokens(index: int) -> float:
            sample = samples[index]
            return estimated_tokens(sample, self.tasks[sample.task], self.processor)

        return {index: samples[index] for index in collectives.my_share(len(samples), tokens)}

    def load(
        self,
        samples: Mapping[int, Sample],
        prompt: Callable[[Sample], Prompt] | None = None,
        *,
        replace: bool = True,
    ) -> dict[int, Loaded]:
        """Return the samples with everything read, by index; this may run beside a training step.

        ``prompt`` stands in for the task's own way to a Prompt. A bad sample is replaced by the next of its task, or
        left out without ``replace``. DataError for too many bad ones, and for a task without a row that can be used.
        """

        def load_one(sample: Sample) -> Loaded | None:
            return self._first_good(sample, prompt or self._prompt, replace)

        loaded = self._pool.map(load_one, samples.values()) if self._pool else map(load_one, samples.values())
        return {index: each for index, each in zip(samples, loaded) if each is not None}

    def report(self, loaded: Iterable[Loaded]) -> dict[str, float]:
        """Return data/bad, the samples passed over for this batch on all ranks; called by all, which share them."""
        self.bad.share()
        return {"data/bad": collectives.all_reduce_sum([float(sum(each.num_bad for each in loaded))])[0]}

    def _prompt(self, sample: Sample) -> Prompt:
        return self.tasks[sample.task].prompt(sample)

    def _first_good(self, sample: Sample, prompt: Callable[[Sample], Prompt], replace: bool) -> Loaded | None:
        task = self.tasks[sample.task]
        for num_bad in range(len(task) if replace else 1):
            if self.bad.passes(sample):
                try:
                    shown = prompt(sample)
                    encoded = dataclasses.replace(self.processor.encode(shown), uid=sample.uid)
                    return Loaded(sample=sample, prompt=shown, encoded=encoded, num_bad=num_bad)
                except ValueError as error:
                    self.bad.add(sample, error)
            sample = task.sample(sample.index + 1)
        if replace:
            raise DataError(f"not one of the {len(task)} rows of {sample.task} can be used")
        return None
