"""The policy: Qwen2.5-VL as a distribution over completions, with its gradient, its update and its saved form."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from vidbridge.algo.logprobs import linear_logprobs
from vidbridge.policy.attention import last_hidden, packed_attention
from vidbridge.policy.engine_local import Engine
from vidbridge.policy.packing import fill_rows, pack, packed_tokens
from vidbridge.policy.processor import Processor
from vidbridge.types import Batch, Group


def embed(
    module: PreTrainedModel, input_ids: torch.Tensor, pixel_values: torch.Tensor, video_grid_thw: torch.Tensor
) -> torch.Tensor:
    """Input embeddings [.., hidden] of tokens [..], video features in the place of their placeholders, in order."""
    embeddings = module.get_input_embeddings()(input_ids)
    if len(video_grid_thw) == 0:
        return embeddings
    features = torch.cat(module.get_video_features(pixel_values, video_grid_thw).pooler_output)
    is_video = (input_ids == module.config.video_token_id).unsqueeze(-1)
    return embeddings.masked_scatter(is_video, features.to(embeddings.dtype))


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
        max_packed_tokens: int = 4096,
        reference: PreTrainedModel | None = None,
        saved_dtype: torch.dtype | None = None,
    ):
        if temperature <= 0 or max_packed_tokens < 1:
            raise ValueError(
                f"temperature must be > 0 and max_packed_tokens >= 1, got {temperature} and {max_packed_tokens}"
            )
        self.module = module
        self.processor = processor
        self.engine = engine
        self.temperature = temperature
        self.max_packed_tokens = max_packed_tokens
        self.reference = reference
        self.saved_dtype = saved_dtype
        self.suppressed_ids = processor.suppressed_ids.to(module.device)

    def collate(self, groups: Sequence[Group], advantages: torch.Tensor, token_weights: torch.Tensor) -> Batch:
        """All ``groups`` as one packed row; advantages [N], token_weights [N, T or wider]."""
        return pack(groups, advantages, token_weights, suppressed_ids=self.processor.suppressed_ids)

    def micro_batches(
        self, groups: Sequence[Group], advantages: torch.Tensor, token_weights: torch.Tensor
    ) -> Iterator[Batch]:
        """The same in rows of at most ``max_packed_tokens``, the longest groups first; a group is not divided.

        They wait in the memory of the CPU. The losses of the parts add up to the loss of the whole.
        """
        rows = torch.arange(len(advantages)).split([len(group.completions) for group in groups])
        for chosen in fill_rows([packed_tokens(group) for group in groups], self.max_packed_tokens):
            places = torch.cat([rows[index] for index in chosen])
            yield self.collate([groups[index] for index in chosen], advantages[places], token_weights[places])

    def logprobs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, T] of the completion tokens, with gradient, and entropies [N, T], without.

        Both are 0 on padding.
        """
        self.module.train()
        return self._token_logprobs(self.module, batch)

    def ref_logprobs(self, batch: Batch) -> torch.Tensor | None:
        """The reference model's log-probabilities [N, T]; None when there is no reference."""
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._token_logprobs(self.reference, batch)[0]

    def _token_logprobs(self, module: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = embed(module, batch.input_ids[None], batch.pixel_values, batch.video_grid_thw)
        attention = packed_attention(batch.group_ids, batch.sibling_ids)
        hidden = last_hidden(module, embeddings, batch.position_ids[:, None], attention)[0]
        mask = batch.sampled_mask
        logprobs, entropies = linear_logprobs(
            hidden.index_select(0, batch.predictors[mask]),  # on a CPU the same gradient every time, unlike [..]
            module.lm_head.weight,
            batch.completion_ids[mask],
            self.temperature,
            self.suppressed_ids,
        )
        table = torch.zeros(mask.shape, device=mask.device)
        return table.masked_scatter(mask, logprobs), table.masked_scatter(mask, entropies)

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
