"""A group of completions for the tests of the record."""

from typing import Sequence

import torch

from vidbridge.types import Completion, EncodedPrompt, Group, Prompt, RewardBreakdown, Sample, VideoRef


def group(*, totals: Sequence[float], video: str = "clip.mp4") -> Group:
    """One completion for each total; a single unscored one when there are none."""
    completions = [Completion(text=f"answer {n}", token_ids=(5, 6, 7)) for n in range(max(len(totals), 1))]
    rewards = [RewardBreakdown(total=total, terms={"choice": total}, gates={"format": 1.0}) for total in totals]
    return Group(
        sample=Sample(uid="qa/test/0", task="qa", question="?", answer="B", videos=(VideoRef(path=video),)),
        prompt=Prompt(messages=(), clips=()),
        encoded=EncodedPrompt(
            input_ids=torch.zeros(1, dtype=torch.long),
            position_ids=torch.zeros(3, 1, dtype=torch.long),
            rope_delta=0,
            pixel_values=torch.zeros(0, 1),
            video_grid_thw=torch.zeros(0, 3, dtype=torch.long),
        ),
        completions=tuple(completions),
        rewards=tuple(rewards),
        trainable=bool(totals),
    )
