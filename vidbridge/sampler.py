"""The first half of a step: samples -> prompts -> completions -> rewards. With ``ahead``, of the next step too.

Ahead, batch n + 1 is sampled elsewhere, with the weights before update n, while batch n is learnt from. A checkpoint
holds the completions that wait, so that a resumed run learns from the same ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Collection, Mapping, Sequence, cast

from vidbridge.data.loader import Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.errors import CheckpointError, RolloutLost
from vidbridge.policy.policy import Policy
from vidbridge.rewards.base import GatedSum
from vidbridge.rewards.scoring import Scorer
from vidbridge.rollout.base import RolloutElsewhere, RolloutEngine
from vidbridge.runtime import collectives
from vidbridge.step_metrics import Clock
from vidbridge.types import Completion, Group, SamplingParams

_REFILLS_FROM = 10**6  # refill r of step n takes batch n + r times this: farther than any run goes


@dataclass(kw_only=True)
class _Sampling:
    """Prompts of this rank by index, on their way to completions and rewards."""

    step: int
    prompts: Mapping[int, Loaded]
    metrics: Mapping[str, float]  # of the data
    scorer: Scorer
    generate: Callable[[], Sequence[tuple[Completion, ...]]] = tuple  # or wait for what has been started
    again: Callable[[], Collection[int]] = tuple  # indices that were sampled with newer weights than those of the start
    is_stale: bool = False  # the weights of the start are not those that learn from it
    completions: Sequence[tuple[Completion, ...]] | None = None

    def finish(self) -> None:
        """Have the completions; called by all ranks."""
        if self.completions is None:
            self.completions = self.generate()


@dataclass(kw_only=True)
class Sampler:
    """Samples and scores batches; every method is called by all ranks, each of which has its share of the prompts.

    For the same weights, prompts and completions depend on (seed, step) alone.
    """

    mixture: Mixture
    loader: Loader
    rollout: RolloutEngine
    sampling: SamplingParams
    group_size: int
    reward: GatedSum
    policy: Policy
    ahead: bool = False
    last: int | None = None  # index of the last step; None: not known
    _waiting: _Sampling | None = field(default=None, init=False)
    _saved: dict[str, Any] | None = field(default=None, init=False)  # of a checkpoint

    def __post_init__(self) -> None:
        self.prompts = Prefetch(self._load, last=self.last)

    def __call__(self, step: int, clock: Clock) -> tuple[list[Group], Collection[int], dict[str, float]]:
        """Return the groups of all ranks for ``step``, from 0; which indices are this rank's; and metrics.

        The groups of other ranks are without tensors.
        """
        sampling, self._waiting = self._waiting, None
        if sampling is None or sampling.step != step:
            sampling = self._batch(step, clock)
        groups, metrics = self._scored(sampling, clock), dict(sampling.metrics)
        if self.ahead:
            metrics["rollout/stale_frac"] = _stale_frac(sampling, groups)
        return groups, sampling.prompts.keys(), metrics

    def begin_next(self, step: int, clock: Clock) -> None:
        """Have the batch after ``step`` sampled from the weights of now, while this one is learnt from."""
        if self.ahead and (self.last is None or step < self.last):
            self._waiting = self._batch(step + 1, clock)
            self._waiting.is_stale = True

    def refill(
        self, step: int, clock: Clock, own: Collection[int], refill: int, idle: Sequence[int]
    ) -> list[Group]:
        """Return other groups, of any task, for the indices ``idle`` of the batch; this rank samples those in ``own``.

        ``refill``, from 1, chooses a batch far down the mixture, so that they too depend on (seed, step) alone.
        """
        at = refill * _REFILLS_FROM + step
        with clock("data"), collectives.fail_together():
            samples = enumerate(self.mixture.batch(at)[: len(idle)])
            prompts = self.loader.load({nth: sample for nth, sample in samples if idle[nth] in own})
        return self._scored(self._sampling(at, prompts, {}, clock), clock)

    def snapshot(self) -> Callable[[Path], None]:
        """Wait for the batch that is sampled ahead; return what writes this rank's part of it into a folder."""
        waiting = self._waiting
        if waiting is None:
            return lambda folder: None
        try:
            waiting.finish()
        except RolloutLost:  # the run can go on without it: that batch is sampled again, from newer weights
            self._waiting = None
            return lambda folder: None
        completions = [[asdict(each) for each in group] for group in waiting.completions or ()]
        uids = [each.sample.uid for each in waiting.prompts.values()]
        told = {"step": waiting.step, "uids": uids, "again": list(waiting.again()), "completions": completions}
        text = json.dumps(told)

        def write(folder: Path) -> None:
            _path(folder).write_text(text, encoding="utf-8")

        return write

    def load(self, folder: Path) -> None:
        """Go on from what a snapshot wrote, if there was something to write."""
        path = _path(folder)
        self._waiting, self._saved = None, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _load(self, step: int) -> dict[int, Loaded]:
        """Return the prompts that this rank works on, by their index in the batch."""
        return self.loader.load(self.loader.own(self.mixture.batch(step)))

    def _batch(self, step: int, clock: Clock) -> _Sampling:
        with clock("data"):
            with collectives.fail_together():
                prompts = self.prompts(step)
            metrics = self.loader.report(prompts.values())
        saved, self._saved = self._saved, None
        if saved is None or saved["step"] != step:
            return self._sampling(step, prompts, metrics, clock)
        with collectives.fail_together():
            return self._restored(saved, prompts, metrics)

    def _sampling(
        self, at: int, prompts: Mapping[int, Loaded], metrics: Mapping[str, float], clock: Clock
    ) -> _Sampling:
        """Sync the rollout, and begin where it is elsewhere; else nothing is sampled before ``finish``."""
        with clock("sync"):
            self.rollout.sync(self.policy)
        scorer = Scorer(self.reward)

        def ended(index: int, completions: tuple[Completion, ...]) -> None:
            scorer.add(index, _group(prompts[index], completions))  # a judge gets it while others are decoded

        arguments = ([each.encoded for each in prompts.values()], self.group_size, self.sampling)
        named: dict[str, Any] = {"seed": self.mixture.seed * 1_000_003 + at, "indices": list(prompts), "ended": ended}
        sampling = _Sampling(step=at, prompts=prompts, metrics=metrics, scorer=scorer)
        if self.ahead:
            started = cast(RolloutElsewhere, self.rollout).start(*arguments, **named)
            sampling.generate, sampling.again = started.finish, started.again
        else:
            sampling.generate = partial(self.rollout.generate, *arguments, **named)
        return sampling

    def _restored(
        self, saved: Mapping[str, Any], prompts: Mapping[int, Loaded], metrics: Mapping[str, float]
    ) -> _Sampling:
        """Return the batch of a checkpoint with its completions."""
        uids = [each.sample.uid for each in prompts.values()]
        if uids != saved["uids"]:
            raise CheckpointError(
                f"the checkpoint holds completions of {saved['uids'][:3]} .. for step {saved['step'] + 1}, "
                f"the data give {uids[:3]} ..: have rows or videos changed?"
            )
        completions = [tuple(_completion(each) for each in group) for group in saved["completions"]]
        scorer = Scorer(self.reward)
        for index, each, done in zip(prompts, prompts.values(), completions, strict=True):
            scorer.add(index, _group(each, done))
        return _Sampling(
            step=saved["step"],
            prompts=prompts,
            metrics=metrics,
            scorer=scorer,
            again=lambda: saved["again"],
            is_stale=True,
            completions=completions,
        )

    def _scored(self, sampling: _Sampling, clock: Clock) -> list[Group]:
        """Return the groups of all ranks with their rewards."""
        with collectives.fail_together(), sampling.scorer:
            with clock("rollout"):
                sampling.finish()
            with clock("reward"):
                groups = sampling.scorer.groups()
        return collectives.gather_by_index(groups, lighten=Group.light)


def _group(of: Loaded, completions: tuple[Completion, ...]) -> Group:
    return Group(sample=of.sample, prompt=of.prompt, encoded=of.encoded, completions=completions)


def _completion(told: Mapping[str, Any]) -> Completion:
    """Return a completion from what JSON has made of its fields."""
    lists = {name: tuple(told[name]) for name in ("token_ids", "sampler_logprobs")}
    return Completion(**{**told, **lists})


def _stale_frac(sampling: _Sampling, groups: Sequence[Group]) -> float:
    """Return the part of all tokens whose weights were older than those that learn from them."""
    stale = collectives.all_gather([index for index in sampling.prompts if index not in set(sampling.again())])
    indices = {index for of_rank in stale for index in of_rank} if sampling.is_stale else set()
    tokens = [sum(len(done.token_ids) for done in group.completions) for group in groups]
    return sum(tokens[index] for index in indices) / sum(tokens)


def _path(folder: Path) -> Path:
    return folder / f"ahead_rank{collectives.rank()}.json"
