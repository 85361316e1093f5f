"""Supervised fine-tuning: the same samples, prompts and policy as GRPO, but the completions are given.

Makes the embedded base model (``experiment=tiny_base``) and the SFT baseline.
"""

from __future__ import annotations

import time
from typing import Mapping, Sequence

import numpy as np
import torch

from vidbridge.algo.token_weights import LossNorm, token_weights
from vidbridge.config.schema import SftStage
from vidbridge.data.loader import BadSamples, Loaded, Loader
from vidbridge.data.mixture import Mixture
from vidbridge.data.prefetch import Prefetch
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives
from vidbridge.shapes_world.bad_habits import Spoiler
from vidbridge.tasks.rows import TaskRows, as_data_errors
from vidbridge.types import Completion, Group, Prompt, Sample, StepResult


class SftStep:
    """One update on gold completions (spoilt at the stage's rates); stages follow one another.

    The samples and the completions of a step depend on (seed, step) alone.
    """

    def __init__(
        self,
        stages: Sequence[SftStage],
        *,
        tasks: Mapping[str, TaskRows],
        processor: Processor,
        policy: Policy,
        prompts_per_step: int,
        seed: int,
        last: int | None = None,  # step that there will be; None: not known
        bad: BadSamples | None = None,
    ) -> None:
        self.tasks, self.processor, self.policy, self.seed = tasks, processor, policy, seed
        self.prompts_per_step = prompts_per_step
        self.ends = np.cumsum([stage.steps for stage in stages])
        self.stages = stages
        self.spoilers = [Spoiler.from_rates(stage.spoil) for stage in stages]
        self.mixtures = [
            Mixture(tasks, stage.shares, prompts_per_step=prompts_per_step, seed=seed) for stage in stages
        ]
        self.loader = Loader(tasks, processor, bad)
        self.loaded = Prefetch(self._load, last=last)

    def __call__(self, step: int) -> StepResult:
        started = time.perf_counter()
        with collectives.fail_together():
            loaded = self.loaded(step)
            groups = self.groups(step, loaded)
        data_metrics = self.loader.report(loaded.values())
        ready = time.perf_counter()
        weights = self._token_weights(groups)
        loss_sum = 0.0
        batches = self.policy.micro_batches(groups, torch.ones(len(groups)), weights)
        for batch in self.policy.with_router_weights(batches):
            batch = batch.to(self.policy.module.device)
            outputs = self.policy.forward(batch)
            loss = -(batch.token_weights * outputs.logprobs).sum()
            self.policy.backward(loss + outputs.router_loss)
            loss_sum += loss.item()
        update = self.policy.update()
        times = {"time/data_s": ready - started, "time/learner_s": time.perf_counter() - ready}
        loss_sum, num_tokens = collectives.all_reduce_sum([loss_sum, float((weights > 0).sum())])
        metrics = {"sft/loss": loss_sum, "sft/tokens": num_tokens, **data_metrics, **update}
        return StepResult(metrics=metrics | collectives.all_reduce_max(times))

    def _stage(self, step: int) -> int:
        """The stage that a step belongs to; the last one goes on."""
        return min(int(np.searchsorted(self.ends, step, side="right")), len(self.stages) - 1)

    def _token_weights(self, groups: Sequence[Group]) -> torch.Tensor:
        """[N, T], of all ranks adding up to at most 1: half of a completion's share is its notes', half the rest's.

        Counted by tokens alone, an answer of one letter would be lost among thirty tokens of notes on the video.
        Without a video the notes cannot be known: they are given, and what follows is all there is to learn.
        """
        mask = loss_mask(groups)
        ends = torch.tensor([self._notes_end(group) for group in groups])
        follows = torch.arange(mask.shape[1]) >= ends[:, None]
        conclusion, notes = (
            token_weights(mask & part, LossNorm.sequence, max_completion_tokens=mask.shape[1])
            for part in (follows, ~follows)
        )
        sees = torch.tensor([bool(group.prompt.clips) for group in groups])[:, None]
        share = len(groups) / self.prompts_per_step  # of this rank
        return torch.where(sees, conclusion + notes, 2 * conclusion) / 2 * share

    def _notes_end(self, group: Group) -> int:
        """Return how many tokens of the completion are notes on the video; 0 where there are none."""
        notes = group.sample.meta.get("notes")
        opening = f"<think>{notes}"
        if not notes or not group.completions[0].text.startswith(opening):
            return 0
        return len(self.processor.encode_completion(opening)) - 1  # without the EOS that it adds

    def _load(self, step: int) -> dict[int, Loaded]:
        """Return the samples of the batch that this rank works on, by their index in it."""
        stage = self._stage(step)
        blind = self.stages[stage].blind

        def prompt(sample: Sample) -> Prompt:
            task = self.tasks[sample.task]
            if sample.task in blind:
                return task.blind_prompt(sample)
            return task.prompt(sample)

        return self.loader.load(self.loader.own(self.mixtures[stage].batch(step)), prompt)

    def groups(self, step: int, loaded: Mapping[int, Loaded]) -> list[Group]:
        """Return groups of one completion, drawn for its index in the batch: the same on whatever rank."""
        spoiler = self.spoilers[self._stage(step)]
        groups = []
        for index, each in loaded.items():
            with as_data_errors(each.sample.uid):
                text = spoiler.completion(each.sample, np.random.default_rng([self.seed, step, index]))
                completion = Completion(text=text, token_ids=self.processor.encode_completion(text))
            groups.append(
                Group(sample=each.sample, prompt=each.prompt, encoded=each.encoded, completions=(completion,))
            )
        return groups
