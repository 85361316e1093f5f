"""What every check of a model works on, and what it says: one row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

import torch

from vidbridge.errors import DataError
from vidbridge.policy.policy import Policy
from vidbridge.tasks.rows import TaskRows
from vidbridge.types import Batch, Completion, Group, Prompt, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``Row(name="pixels", ok=False, found="0.31 apart at 448 x 448", advice="look at image_mean in ..")``."""

    name: str
    ok: bool | None  # None: it could not be run, and ``found`` says why
    found: str
    advice: str = ""  # what to do; empty where nothing need be done


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A row of a task with its video read, before anything of the model has seen it."""

    sample: Sample
    prompt: Prompt
    gold: str  # the completion that earns everything


def read_items(task: TaskRows) -> Iterator[Item]:
    """The rows of ``task`` in order, without those that cannot be read; DataError when none can."""
    last: ValueError | None = None
    found = False
    for sample in map(task.sample, range(len(task))):
        try:
            prompt = task.prompt(sample)
        except ValueError as error:
            last = error
            continue
        found = True
        yield Item(sample=sample, prompt=prompt, gold=task.gold(sample))
    if not found:
        raise DataError(f"not one of the {len(task)} rows of {task.name} can be read. The last: {last}")


def in_turn(iterators: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """One of each, and again, until one has no more."""
    for items in zip(*iterators):
        yield from items


def group_of(policy: Policy, item: Item, texts: Sequence[str], prompt: Prompt | None = None) -> Group:
    """``texts`` as completions of the item's prompt, or of another one."""
    prompt = prompt or item.prompt
    completions = [Completion(text=text, token_ids=policy.processor.encode_completion(text)) for text in texts]
    encoded = policy.processor.encode(prompt)
    return Group(sample=item.sample, prompt=prompt, encoded=encoded, completions=tuple(completions))


def batch_of(policy: Policy, groups: Sequence[Group]) -> Batch:
    """``groups`` as one row for the learner, on the model's device, without anything to learn."""
    num_rows = sum(len(group.completions) for group in groups)
    longest = max(len(done.token_ids) for group in groups for done in group.completions)
    batch = policy.collate(groups, torch.zeros(num_rows), torch.zeros(num_rows, longest))
    return batch.to(policy.module.device)


@torch.no_grad()
def logprobs_per_token(policy: Policy, groups: Sequence[Group]) -> list[float]:
    """The mean log-probability of a token of each completion, in the order of the groups, by the learner's forward."""
    batch = batch_of(policy, groups)
    logprobs, mask = policy.logprobs(batch)[0], batch.sampled_mask
    means: list[float] = ((logprobs * mask).sum(dim=1) / mask.sum(dim=1)).tolist()
    return means
