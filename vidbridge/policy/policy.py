"""The policy: a model as a distribution over completions, with its gradient, its update and its saved form."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from vidbridge.algo.logprobs import linear_logprobs
from vidbridge.backbones import backbone_of
from vidbridge.backbones.routers import balance_loss, expert_load, recorded
from vidbridge.policy.adapters import adapters_off, has_adapters, is_of_adapter, merged_weights, save_adapters
from vidbridge.policy.attention import packed_attention
from vidbridge.policy.engines.base import Engine
from vidbridge.policy.model_folder import rewrite_config
from vidbridge.policy.packing import fill_rows, masked, pack, packed_tokens
from vidbridge.policy.processor import Processor
from vidbridge.runtime import collectives
from vidbridge.types import Batch, Group, Outputs


def token_logprobs(
    module: PreTrainedModel, batch: Batch, temperature: float, suppressed_ids: torch.Tensor
) -> Outputs:
    """Return what ``module`` says about the completion tokens."""
    backbone = backbone_of(module.config.model_type)
    with recorded(backbone.routers(module)) as routings:
        hidden = backbone.hidden(
            module,
            batch.input_ids[None],
            batch.pixel_values,
            batch.grid_thw,
            batch.position_ids[:, None],
            packed_attention(batch.group_ids, batch.sibling_ids),
        )[0]
    mask = batch.sampled_mask
    logprobs, entropies = linear_logprobs(
        hidden.index_select(0, batch.predictors[mask]),  # on a CPU the same gradient every time, unlike [..]
        module.lm_head.weight,
        batch.completion_ids[mask],
        temperature,
        suppressed_ids,
    )
    table = torch.zeros(mask.shape, device=mask.device)
    nothing = torch.zeros((), device=mask.device)
    return Outputs(
        logprobs=table.masked_scatter(mask, logprobs),
        entropies=table.masked_scatter(mask, entropies),
        router_loss=batch.router_weight * balance_loss(routings) if batch.router_weight else nothing,
        expert_load=expert_load(routings) if routings else nothing,
    )


def frozen_copy(module: nn.Module) -> nn.Module:
    """The reference of a KL term: the weights as they are now, never trained."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def copy_with(module: nn.Module, weight_of: Callable[[nn.Parameter], torch.Tensor]) -> nn.Module:
    """Return a copy of ``module``, never trained, with what ``weight_of`` gives in the place of each of its weights."""
    weights = {id(weight): nn.Parameter(weight_of(weight), requires_grad=False) for weight in module.parameters()}
    return copy.deepcopy(module, weights).eval()


class Policy:
    """A model, its processor and (None for a policy that is only read) the engine that trains it.

    ``temperature`` and the processor's suppressed tokens belong to the distribution: rollout samples from it and the
    learner differentiates it. ``reference``, given only when kl_beta > 0, is a ``frozen_copy``, or the model itself
    where it has adapters: they are turned off for it.
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
        router_aux_coef: float = 0.0,
        save_merged: bool = False,
    ):
        if type(module.lm_head) is not nn.Linear:  # token_logprobs multiplies by its weight, a few tokens at a time
            kind = type(module.lm_head).__name__
            raise ValueError(f"lm_head is a {kind} in the place of a Linear: an adapter there would not be trained")
        self.module = module
        self.processor = processor
        self.engine = engine
        self.temperature = temperature
        self.max_packed_tokens = max_packed_tokens
        self.reference = reference
        self.saved_dtype = saved_dtype
        self.router_aux_coef = router_aux_coef
        self.save_merged = save_merged
        self.suppressed_ids = processor.suppressed_ids.to(module.device)

    def collate(self, groups: Sequence[Group], advantages: torch.Tensor, token_weights: torch.Tensor) -> Batch:
        """Return all ``groups`` as one packed row; advantages [N], token_weights [N, T or wider]."""
        return pack(groups, advantages, token_weights, suppressed_ids=self.processor.suppressed_ids)

    def micro_batches(
        self,
        groups: Sequence[Group],
        advantages: torch.Tensor,
        token_weights: torch.Tensor,
        teaches: Sequence[bool] | None = None,
    ) -> list[Batch]:
        """Return the groups in rows of at most ``max_packed_tokens``, the longest first; a group is not divided.

        They wait in the memory of the CPU. The losses of the parts, and those of all ranks, add up to the loss of the
        whole. Groups that do not teach (None: all do) are left out. On every rank there are equally many, at least one:
        a rank that has fewer takes its shortest group, masked, because all ranks work on every weight together.
        """
        lengths = [packed_tokens(group) for group in groups]
        indices = torch.arange(len(advantages)).split([len(group.completions) for group in groups])

        def batch_of(chosen: Sequence[int]) -> Batch:
            rows = torch.cat([indices[index] for index in chosen])
            return self.collate([groups[index] for index in chosen], advantages[rows], token_weights[rows])

        taught = [index for index in range(len(groups)) if teaches is None or teaches[index]]
        rows = fill_rows([lengths[index] for index in taught], self.max_packed_tokens)
        batches = [batch_of([taught[index] for index in row]) for row in rows]
        missing = max(1, *collectives.all_gather(len(batches))) - len(batches)
        return batches + [masked(batch_of([lengths.index(min(lengths))]))] * missing

    def with_router_weights(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the parts of an update with their ``router_weight``: ``router_aux_coef``, shared by their tokens.

        Those of all ranks add up, so that the routers' loss is the mean over the tokens of the update, each prompt's
        counted once. What is masked weighs nothing.
        """
        if not self.router_aux_coef:
            return list(batches)
        tokens = [len(batch.input_ids) * bool(batch.loss_mask.any()) for batch in batches]
        total = max(1, sum(collectives.all_gather(sum(tokens))))
        return [
            replace(batch, router_weight=self.router_aux_coef * number / total)
            for batch, number in zip(batches, tokens)
        ]

    def forward(self, batch: Batch) -> Outputs:
        """Return what the policy says about the completions, ready for ``backward``."""
        self.module.train()
        forward = partial(token_logprobs, self.module) if self.engine is None else self.engine.forward
        return forward(batch, self.temperature, self.suppressed_ids)

    def logprobs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [N, T] of the completion tokens, with gradient, and entropies [N, T], without."""
        outputs = self.forward(batch)
        return outputs.logprobs, outputs.entropies

    def ref_logprobs(self, batch: Batch) -> torch.Tensor | None:
        """The reference model's log-probabilities [N, T]; None when there is no reference."""
        if self.reference is None:
            return None
        with torch.no_grad(), adapters_off(self.reference):
            return token_logprobs(self.reference, batch, self.temperature, self.suppressed_ids).logprobs

    def whole(self) -> PreTrainedModel:
        """The model with all its weights as they are now, for this rank to sample from; called by all ranks."""
        return self.module if self.engine is None else self.engine.whole()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Return all weights as they are now by their names in the released model, adapters added; called by all ranks.

        Each is whole until the next is asked for: who keeps one copies it. So an engine elsewhere gets the model
        without a rank that holds all of it.
        """
        return merged_weights(self.module, self._gathered)

    def _gathered(self, weights: Sequence[nn.Parameter]) -> ContextManager[Any]:
        return nullcontext() if self.engine is None else self.engine.gathered(weights)

    def backward(self, loss: torch.Tensor) -> None:
        assert self.engine is not None, "a policy without an engine is not trained"
        self.engine.backward(loss)

    def update(self) -> dict[str, float]:
        assert self.engine is not None, "a policy without an engine is not trained"
        return self.engine.update()

    def save(self, path: str | Path, *, tags: Sequence[str] = ()) -> None:
        """Write a Hugging Face folder: weights (as ``saved_dtype``), tokenizer, preprocessing numbers, model card.

        Of a model with adapters it is a PEFT folder; with ``save_merged`` it holds the model with them added to its
        weights, and the PEFT folder is adapter/ in it: side by side, readers would add them twice. ``tags`` are further
        ones of the card, such as the algorithm. Called by all ranks; the first one writes.
        """
        module, path = self.module, Path(path)
        dtype, adapters_alone = self.saved_dtype or module.dtype, has_adapters(module) and not self.save_merged
        adapters = [weight for name, weight in module.named_parameters() if is_of_adapter(name)]
        merged = {}
        for name, weight in () if adapters_alone else self.weights():  # one after another: no GPU holds them all
            if collectives.is_rank_0():
                merged[name] = weight.to("cpu", dtype, copy=True)
        with collectives.fail_together(), self._gathered(adapters):
            if collectives.is_rank_0():
                if adapters:
                    save_adapters(module, path if adapters_alone else path / "adapter", dtype)
                if not adapters_alone:
                    # it looks at shapes: experts are stored transposed where the model has them so
                    outline: PreTrainedModel = module if self.engine is None else self.engine.outline()
                    outline.save_pretrained(path, state_dict=merged)
                    rewrite_config(path, dtype)
                self.processor.save(path)
                num_weights = sum(weight.numel() for weight in merged.values() or adapters)
                card = model_card(module, tags, num_weights, adapters_alone=adapters_alone)
                (path / "README.md").write_text(card)


def model_card(
    module: PreTrainedModel, tags: Sequence[str], num_weights: int, *, adapters_alone: bool = False
) -> str:
    """A short README.md for the saved folder, of a model or of its adapters alone; ``num_weights`` are in it."""
    origin = module.name_or_path  # of a folder the name alone: the rest is about this machine
    origin = Path(origin).name if Path(origin).exists() else origin
    kind = type(module).__name__
    library, what, imports = "transformers", kind, f"from transformers import AutoTokenizer, {kind}"
    load = f'{kind}.from_pretrained("this folder")'
    if adapters_alone:
        library, what, imports = "peft", f"Adapters (LoRA) of {kind}", f"from peft import PeftModel\n    {imports}"
        load = f'PeftModel.from_pretrained({kind}.from_pretrained("{origin}"), "this folder")'
    return f"""---
library_name: {library}
pipeline_tag: video-text-to-text
tags: [{', '.join(['vidbridge', module.config.model_type, *tags])}]
---
# {what}, {num_weights / 1e6:.1f} M parameters, trained with vidbridge

Started from `{origin}`. It answers questions about videos as `<think>..</think>` followed by
`<answer>..</answer>`.

    {imports}

    model = {load}
    tokenizer = AutoTokenizer.from_pretrained("this folder")

{backbone_of(module.config.model_type).card_note}
"""
