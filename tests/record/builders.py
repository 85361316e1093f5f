"""A group of completions for the tests of the record."""

from typing import Any, Sequence

import torch

from vidbridge.types import Clip, Completion, EncodedPrompt, Group, Prompt, RewardBreakdown, Sample, VideoRef


def group(*, totals: Sequence[float], clips: Sequence[Clip] = (), **sample: Any) -> Group:
    """One completion for each total; a single unscored one when there are none. Its videos are nowhere."""
    completions = [Completion(text=f"answer {n}", token_ids=(5, 6, 7)) for n in range(max(len(totals), 1))]
    rewards = [RewardBreakdown(total=total, terms={"choice": total}, gates={"format": 1.0}) for total in totals]
    known = {"uid": "qa/test/0", "videos": (VideoRef(path="no/such.mkv"),) * max(len(clips), 1), **sample}
    return Group(
        sample=Sample(task="qa", question="?", answer="B", **known),
        prompt=Prompt(messages=(), clips=tuple(clips)),
        encoded=EncodedPrompt(
            input_ids=torch.zeros(1, dtype=torch.long),
            position_ids=torch.zeros(3, 1, dtype=torch.long),
            rope_delta=0,
            pixel_values=torch.zeros(0, 1),
            grid_thw=torch.zeros(0, 3, dtype=torch.long),
        ),
        completions=tuple(completions),
        rewards=tuple(rewards) or (RewardBreakdown.unscored(),),
    )
