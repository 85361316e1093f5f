"""One step of TRL's GRPOTrainer on our model and prompts. Needs trl; written against trl 1.16.

TRL knows images only: one frame of each pair becomes an image, which gives as many patches and tokens as the video.
"""

from __future__ import annotations

import copy
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

from datasets import Dataset
from PIL import Image
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer

from experiments.bench.families import MERGE, PATCH, TEMPORAL
from experiments.bench.shape import QUESTION, SYSTEM, random_clip


class ImagesOnly(Qwen2_5_VLProcessor):
    """The family's processor without its video side, whose class does not load beside every torch build."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """The check would load it."""


def trl_step(
    plain: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_prompts: int,
    group_size: int,
    completion_tokens: int,
    video_tokens: int,
    suppressed: list[int],
    score: Callable[[Sequence[int]], float],  # of a completion's token ids
) -> Callable[[], None]:
    """A call is one step on a copy of ``plain``: all groups sampled together, one forward and backward, one update."""
    images = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=TEMPORAL)
    processor = ImagesOnly(images, copy.deepcopy(tokenizer), None, chat_template=tokenizer.chat_template)

    def reward(completion_ids: Sequence[Sequence[int]], **other: Any) -> list[float]:
        assert {len(ids) for ids in completion_ids} == {completion_tokens}
        return [score(ids) for ids in completion_ids]

    prompts = [row(video_tokens, seed) for seed in range(num_prompts)]
    with TemporaryDirectory() as folder:  # nothing is written there
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=num_prompts * group_size,
            num_generations=group_size,
            max_completion_length=completion_tokens,
            generation_kwargs={"suppress_tokens": suppressed},
            beta=0.0,
            learning_rate=1e-6,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # on by default: memory for time, and memory is not short here
            report_to="none",
        )
        trainer = GRPOTrainer(
            model=copy.deepcopy(plain),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(prompts),
            processing_class=processor,
        )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = [prompt for prompt in prompts for _ in range(group_size)]

    def step() -> None:
        # the body of the loop in train(), whose own start would count against it at every call
        trainer.training_step(trainer.model, batch, None)
        clip_grad_norm_(trainer.model.parameters(), config.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return step


def row(video_tokens: int, seed: int) -> dict[str, Any]:
    """What TRL calls a conversational prompt with images."""
    frames = random_clip(video_tokens, seed=seed).frames[::TEMPORAL]
    prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    return {"prompt": prompt, "images": [Image.fromarray(frame) for frame in frames]}
