"""Groups and policies on the random folder, shared by the policy and rollout tests."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch

from tests.conftest import random_clip, random_image, video_prompt
from vidbridge.config.choices import Schedule
from vidbridge.config.schema import OptimConfig
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.policy.loading import load_model
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.types import Completion, EncodedPrompt, Group, Prompt, RewardBreakdown, Sample

FRAMES = FrameBudget(fps=None, max_frames=8, min_pixels=64, max_pixels=1024)
SAMPLE = Sample(uid="qa/train/0", task="qa", question="what?", answer="A", videos=())
TEXT_ALONE = video_prompt(text="what is red?")


def make_policy(
    folder: Path,
    *,
    lr: float = 1e-3,
    temperature: float = 1.0,
    max_packed_tokens: int = 4096,
    device: str = "cpu",
    **loading,
):
    module = load_model(str(folder), device=device, **loading)
    engine = LocalEngine(module, OptimConfig(lr=lr, schedule=Schedule.constant), total_updates=10)
    processor = Processor.from_folder(folder, FRAMES)
    return Policy(
        module, processor, engine, temperature=temperature, max_packed_tokens=max_packed_tokens
    )


def ragged_prompts() -> list[Prompt]:
    """Three lengths, two frame sizes, an odd frame count, and one prompt with two videos."""
    return [
        video_prompt(random_clip(4, 16, 16, seed=1)),
        video_prompt(random_clip(5, 24, 16, seed=2), random_clip(2, 16, 16, fps=1.0, seed=3), text="it is red?"),
        video_prompt(random_clip(2, 32, 24, seed=4), text="what is next? A or B?"),
    ]


def mixed_prompts() -> list[Prompt]:
    """Text alone, an image, two images, a video, an image before a video, an image after one."""
    image, other = random_image(16, 24, seed=5), random_image(24, 8, seed=6)
    video = random_clip(5, 24, 16, seed=2)
    shown = [(), (image,), (other, image), (video,), (image, video), (video, other)]
    return [video_prompt(*clips, text="what is red?") for clips in shown]


def make_group(policy: Policy, prompt: Prompt, texts: Sequence[str], scored: bool = True) -> Group:
    completions = [Completion(text=text, token_ids=policy.processor.encode_completion(text)) for text in texts]
    return Group(
        sample=SAMPLE,
        prompt=prompt,
        encoded=policy.processor.encode(prompt),
        completions=tuple(completions),
        rewards=() if scored else (RewardBreakdown.unscored(),) * len(texts),
    )


def ragged_groups(policy: Policy) -> list[Group]:
    texts = [["the square moves left.", "A"], ["it is red, then green", "first the cross spins"], ["B", "it hides."]]
    return [make_group(policy, prompt, words) for prompt, words in zip(ragged_prompts(), texts)]


def sampled_groups(prompts: Sequence[Prompt], encoded: Sequence[EncodedPrompt], completions) -> list[Group]:
    return [
        Group(sample=SAMPLE, prompt=prompt, encoded=tensors, completions=siblings)
        for prompt, tensors, siblings in zip(prompts, encoded, completions)
    ]


def random_groups(
    policy: Policy, lengths: Sequence[Sequence[int]], prompts: Sequence[Prompt] | None = None
) -> list[Group]:
    """Completions of these numbers of random words, the last of them EOS; a group of its own for each inner list.

    Their prompts are ``prompts`` in turn; None: those of ``ragged_prompts`` and one of text alone.
    """
    prompts = prompts or [*ragged_prompts(), TEXT_ALONE]
    words = torch.tensor(sorted(set(range(len(policy.processor.tokenizer))) - set(policy.suppressed_ids.tolist())))
    generator = torch.Generator().manual_seed(sum(map(sum, lengths)))
    groups = []
    for place, of_group in enumerate(lengths):
        prompt = prompts[place % len(prompts)]
        rows = [words[torch.randint(len(words), (length - 1,), generator=generator)].tolist() for length in of_group]
        completions = tuple(Completion(text="", token_ids=(*row, policy.processor.eos_id)) for row in rows)
        encoded = policy.processor.encode(prompt)
        groups.append(Group(sample=SAMPLE, prompt=prompt, encoded=encoded, completions=completions))
    return groups


def whole_batch(policy: Policy, groups: Sequence[Group]):
    """All groups in one Batch, advantage 1 and weight 1 everywhere."""
    num_rows = sum(len(group.completions) for group in groups)
    return policy.collate(groups, torch.ones(num_rows), torch.ones(num_rows, 64))
