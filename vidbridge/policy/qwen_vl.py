"""The policy: Qwen2.5-VL as a distribution over completions, with its gradient, its update and its saved form.

The forward here is the plain one: every completion is a full row [prompt | completion]. It is the reference that a
faster forward has to agree with.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from vidbridge.algo.logprobs import token_logprobs
from vidbridge.policy.collate import collate
from vidbridge.policy.engine_local import Engine
from vidbridge.policy.processor import Processor
from vidbridge.types import Batch, Group


def embed_prompts(
    module: PreTrainedModel, prompt_ids: torch.Tensor, pixel_values: torch.Tensor, video_grid_thw: torch.Tensor
) -> torch.Tensor:
    """Input embeddings [P, L, hidden] of prompts [P, L], video features in the place of their placeholders."""
    embeddings = module.get_input_embeddings()(prompt_ids)
    if len(video_grid_thw) == 0:
        return embeddings
    features = torch.cat(module.get_video_features(pixel_values, video_grid_thw).pooler_output)
    is_video = (prompt_ids == module.config.video_token_id).unsqueeze(-1)
    return embeddings.masked_scatter(is_video, features.to(embeddings.dtype))


def completion_logits(module: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits [N, T, V] that predict ``batch.completion_ids``. Each video is encoded once, whatever G is."""
    prompts = embed_prompts(module, batch.prompt_ids, batch.pixel_values, batch.video_grid_thw)
    mask, positions, rope_deltas = batch.prompt_mask, batch.prompt_positions, batch.rope_deltas
    if len(batch.row_prompt) > len(prompts):
        prompts, mask, positions = prompts[batch.row_prompt], mask[batch.row_prompt], positions[:, batch.row_prompt]
        rope_deltas = rope_deltas[batch.row_prompt]
    # The last token predicts nothing that counts. Padding after a completion needs no mask: nothing later sees it.
    completions = batch.completion_ids[:, :-1]
    steps = torch.arange(completions.shape[1], device=completions.device)
    first_position = mask.sum(dim=1) + rope_deltas
    completion_positions = (first_position[:, None] + steps).expand(3, -1, -1)
    return module(
        inputs_embeds=torch.cat([prompts, module.get_input_embeddings()(completions)], dim=1),
        attention_mask=torch.cat([mask, torch.ones_like(completions, dtype=torch.bool)], dim=1),
        position_ids=torch.cat([positions, completion_positions], dim=2),
        use_cache=False,
        logits_to_keep=batch.completion_ids.shape[1],
    ).logits


def frozen_copy(module: nn.Module) -> nn.Module:
    """The reference of a KL term: the weights as they are now, never trained."""
    return copy.deepcopy(module).eval().requires_grad_(False)


class QwenVLPolicy:
    """A model, its processor and (None for a policy that is only read) the engine that trains it.

    ``temperature`` and the processor's suppressed tokens belong to the distribution: rollout samples from it and the
    learner differentiates it. ``reference`` is a ``frozen_copy``, given only when kl_beta > 0.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        processor: Processor,
        engine: Engine | None = None,
        *,
        temperature: float = 1.0,
        micro_batch_groups: int = 1,
        reference: PreTrainedModel | None = None,
        saved_dtype: torch.dtype | None = None,
    ):
        if temperature <= 0 or micro_batch_groups < 1:
            raise ValueError(
                f"temperature must be > 0 and micro_batch_groups >= 1, got {temperature} and {micro_batch_groups}"
            )
        self.module = module
        self.processor = processor
        self.engine = engine
        self.temperature = temperature
        self.micro_batch_groups = micro_batch_groups
        self.reference = reference
        self.saved_dtype = saved_dtype
        self.suppressed_ids = processor.suppressed_ids.to(module.device)

    def collate(self, groups: Sequence[Group], advantages: torch.Tensor, token_weights: torch.Tensor) -> Batch:
        """Tensors of all ``groups`` on the model's device; advantages [N], token_weights [N, T or wider]."""
        return collate(
            groups,
            advantages,
            token_weights,
            pad_id=self.processor.pad_id,
            eos_id=self.processor.eos_id,
            suppressed_ids=self.processor.suppressed_ids,
            device=self.module.device,
        )

    def micro_batches(
        self, groups: Sequence[Group], advantages: torch.Tensor, token_weights: torch.Tensor
    ) -> Iterator[Batch]:
        """The same as one Batch, ``micro_batch_groups`` groups at a time; losses of the parts add up to the whole's."""
        row = 0
        for start in range(0, len(groups), self.micro_batch_groups):
            part = groups[start : start + self.micro_batch_groups]
            stop = row + sum(len(group.completions) for group in part)
            yield self.collate(part, advantages[row:stop], token_weights[row:stop])
            row = stop

    def logprobs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, T] of the completion tokens, with gradient, and entropies [N, T], without."""
        self.module.train()
        return self._token_logprobs(self.module, batch)

    def ref_logprobs(self, batch: Batch) -> torch.Tensor | None:
        """The reference model's log-probabilities [N, T]; None when there is no reference."""
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._token_logprobs(self.reference, batch)[0]

    def _token_logprobs(self, module: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(
            completion_logits(module, batch), batch.completion_ids, self.temperature, self.suppressed_ids
        )

    def backward(self, loss: torch.Tensor) -> None:
        assert self.engine is not None, "a policy without an engine is not trained"
        self.engine.backward(loss)

    def update(self) -> dict[str, float]:
        assert self.engine is not None, "a policy without an engine is not trained"
        return self.engine.update()

    def save(self, path: str | Path, *, tags: Sequence[str] = ()) -> None:
        """Write a Hugging Face folder: weights (as ``saved_dtype``), tokenizer, preprocessing numbers, model card.

        ``tags`` are further ones of the card, such as the algorithm.
        """
        module = self.module if self.saved_dtype is None else copy.deepcopy(self.module).to(self.saved_dtype)
        module.save_pretrained(path)
        self.processor.save(path)
        Path(path, "README.md").write_text(model_card(self.module, tags))


def model_card(module: PreTrainedModel, tags: Sequence[str]) -> str:
    """A short README.md for the saved folder."""
    origin = module.name_or_path  # of a folder the name alone: the rest is about this machine
    origin = Path(origin).name if Path(origin).exists() else origin
    millions = sum(weight.numel() for weight in module.parameters()) / 1e6
    return f"""---
library_name: transformers
pipeline_tag: video-text-to-text
tags: [{', '.join(['vidbridge', 'qwen2_5_vl', *tags])}]
---
# {type(module).__name__}, {millions:.1f} M parameters, trained with vidbridge

Started from `{origin}`. It answers questions about videos as `<think>..</think>` followed by
`<answer>..</answer>`.

    from transformers import AutoTokenizer, {type(module).__name__}

    model = {type(module).__name__}.from_pretrained("this folder")
    tokenizer = AutoTokenizer.from_pretrained("this folder")
"""
