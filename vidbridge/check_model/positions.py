"""Rotary positions by a second implementation, token by token, of the rules that the families were trained with."""

from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np

from vidbridge.check_model.base import Item, Row
from vidbridge.policy.processor import Processor
from vidbridge.types import Clip, EncodedPrompt, Prompt

TOLD_IN_WORDS = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5")  # families that write the time of each picture before it


def check_positions(processor: Processor, items: Sequence[Item]) -> Row:
    """Rotary positions against the trained rule, written out here token by token."""
    problems, num_tokens = [], 0
    prompts = [item.prompt for item in items]
    prompts.append(several_clips(prompts[0]))
    for prompt in prompts:
        encoded = processor.encode(prompt)
        table = positions_by_token(processor, encoded, prompt.clips)
        num_tokens += len(table)
        wrong = np.flatnonzero((encoded.position_ids.numpy().T != table).any(axis=1))
        if len(wrong):
            at = int(wrong[0])
            problems.append(f"token {at} stands at {encoded.position_ids[:, at].tolist()}, not {table[at].tolist()}")
        delta = int(table.max()) + 1 - len(table)
        if encoded.rope_delta != delta:
            problems.append(f"the rope delta is {encoded.rope_delta}, not {delta}")
    return Row(
        name="positions",
        ok=not problems,
        found="; ".join(dict.fromkeys(problems)) or f"{len(prompts)} prompts, {num_tokens:,} tokens by the rule",
        advice="see tokens_per_second in config.json and the rule in vidbridge/backbones/mrope.py"
        if problems
        else "",
    )


def several_clips(prompt: Prompt) -> Prompt:
    """A frame of the first clip as an image, that clip as a video, and half of its frames again at another rate."""
    frames, times_s = prompt.clips[0].frames, prompt.clips[0].times_s
    half = max(1, len(times_s) // 2)
    clips = (
        Clip(frames=frames[:1], times_s=np.zeros(1), is_image=True),
        Clip(frames=frames, times_s=times_s),
        Clip(frames=frames[:half], times_s=times_s[:half] * 1.7),
    )
    content = [{"type": "image"}, {"type": "video"}, {"type": "video"}, {"type": "text", "text": "."}]
    return Prompt(messages=({"role": "user", "content": content},), clips=clips)


def positions_by_token(processor: Processor, encoded: EncodedPrompt, clips: Sequence[Clip]) -> np.ndarray:
    """[L, 3]: text goes on one after the largest position so far; a clip counts seconds, rows and columns from there.

    Times are cut to whole positions after 32-bit products, as in the code that the model was trained with.
    """
    config = processor.config
    seconds = [0.0] * len(runs_by_rule(processor, encoded))  # a picture does not last
    if config.model_type not in TOLD_IN_WORDS:
        seconds = [seconds_a_grid(clip, config.vision_config.temporal_patch_size) for clip in clips]
    runs = zip(runs_by_rule(processor, encoded), seconds, strict=True)
    table: list[tuple[int, int, int]] = []
    largest = -1
    of_run: Iterator[tuple[int, int, int]] = iter(())  # those of the run that is being read
    for is_vision in processor.is_vision(encoded.input_ids).tolist():
        position = (largest + 1,) * 3
        if is_vision:
            found = next(of_run, None)
            if found is None:  # the first token of the next run
                of_run = run_positions(processor, largest + 1, *next(runs))
                found = next(of_run)
            position = found
        table.append(position)
        largest = max(largest, *position)
    return np.array(table)


def run_positions(
    processor: Processor, start: int, grid: Sequence[int], seconds: float
) -> Iterator[tuple[int, int, int]]:
    """Return the position of each token of a run that begins at ``start``; ``seconds`` lie between two of its grids."""
    vision = processor.config.vision_config
    for moment in range(grid[0]):
        rate = np.float32(getattr(vision, "tokens_per_second", 0))
        time = int(np.float32(moment) * np.float32(seconds) * rate)
        for row in range(grid[1] // vision.spatial_merge_size):
            for column in range(grid[2] // vision.spatial_merge_size):
                yield start + time, start + row, start + column


def seconds_a_grid(clip: Clip, temporal_patch_size: int) -> float:
    """Return the seconds between two temporal patches, by the mean rate of the frames; of one frame its own second."""
    times_s = clip.times_s
    rate = round((len(times_s) - 1) / float(times_s[-1] - times_s[0]), 6) if len(times_s) > 1 else 1.0
    return temporal_patch_size / rate


def runs_by_rule(processor: Processor, encoded: EncodedPrompt) -> list[list[int]]:
    """Return the grid (t, h, w) of each run of tokens: an image, a video, or one of its pictures after its time."""
    grids = encoded.grid_thw.tolist()
    if processor.config.model_type in TOLD_IN_WORDS:
        return [[1, height, width] for time, height, width in grids for _ in range(time)]
    return list(grids)
