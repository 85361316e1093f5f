"""The rollout of vLLM (arXiv 2309.06180), in the process of each rank: written against vLLM 0.32.

vLLM is given what the learner learns from (token ids, patches, grids and positions) and reads no video of its own. Its
random numbers are others than ours, drawn from the same distribution. A prompt and its video are computed once for all
siblings, by its prefix cache; nothing that was made of older weights is found in it, because the number of the weights
is part of every key.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from vidbridge.backbones import backbone_of
from vidbridge.config.checks import require, require_positive
from vidbridge.errors import RolloutError
from vidbridge.policy.policy import Policy
from vidbridge.rollout.base import Ended, Progress, RolloutConfig
from vidbridge.runtime import collectives
from vidbridge.runtime.random_state import random_state, set_random_state
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

NEVER = -100.0  # the lowest bias that vLLM takes; e to that power is nothing beside the sum of a softmax
MAX_CLIPS = 16  # videos of a prompt, and as many images
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: weights are handed over as they are
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it pins the learner's threads too
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, kw_only=True)
class VllmConfig(RolloutConfig):
    cache_gb: float = 1.0  # 10**9 bytes of keys and values on each rank, beside the weights

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("rollout", self, "cache_gb")
        require(self.temperature <= 2, f"rollout.temperature={self.temperature:g}: vLLM takes no more than 2")

    @property
    def cache_bytes(self) -> float:
        return 1e9 * self.cache_gb

    def check_here(self) -> None:
        require(find_spec("vllm") is not None, "rollout=vllm needs vLLM, which is not installed: docs/vllm.md")

    def build(self, policy: Policy) -> VllmRollout:
        self.check_here()
        return VllmRollout(
            policy,
            max_rows=self.max_rows,
            max_completion_tokens=self.max_completion_tokens,
            cache_bytes=self.cache_bytes,
        )


class VllmRollout:
    """A completion is a function of weights, prompt, seed and index, whatever is sampled beside it.

    ``sampler_logprobs`` belong to the distribution that was drawn from. ``max_completion_tokens`` is the most that
    ``generate`` may be asked for.
    """

    def __init__(self, policy: Policy, *, max_rows: int, max_completion_tokens: int, cache_bytes: float):
        self.processor, self.config = policy.processor, policy.processor.config
        longest = policy.processor.max_prompt_tokens + max_completion_tokens
        self.max_tokens = min(longest, self.config.text_config.max_position_embeddings)
        self.bias = {token: NEVER for token in policy.suppressed_ids.tolist()}
        self.version = 0
        self.llm = _llm(policy, max_rows=max_rows, max_tokens=self.max_tokens, cache_bytes=cache_bytes)
        collectives.before_leaving(self.close)
        self.llm.apply_model(_use_given_positions)
        self.sync(policy)

    def sync(self, policy: Policy) -> None:
        """Copy the weights as they are now, a layer at a time; called by all ranks."""
        self.version += 1
        # vLLM keeps them until a layer is complete, and under ZeRO-3 they are gone when the next is asked for
        weights = ((name, weight.clone()) for name, weight in policy.weights())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(_pack_tied_head)
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        """Let go of the memory, and of the groups of ranks that vLLM has made."""
        self.llm.llm_engine.engine_core.shutdown()

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        group_size: int,
        sampling: SamplingParams,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        ended: Ended | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[Completion, ...]]:
        indices = range(len(prompts)) if indices is None else indices
        engine = self.llm.llm_engine
        # all of them before the first is handed over: one that is refused leaves none behind
        inputs = [self._input(prompt, index) for prompt, index in zip(prompts, indices, strict=True)]
        for number, (given, index) in enumerate(zip(inputs, indices)):
            told = self._sampling(sampling, group_size, np.random.SeedSequence([seed, index]))
            engine.add_request(str(number), given, told)
        groups: dict[int, tuple[Completion, ...]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    number = int(output.request_id)
                    groups[number] = self._read(output, group_size, indices[number], greedy=sampling.greedy)
                    if ended is not None:
                        ended(indices[number], groups[number])
            if progress is not None and groups:
                progress(len(groups) / len(prompts))
        return [groups[number] for number in range(len(prompts))]

    def _sampling(self, sampling: SamplingParams, group_size: int, seeds: np.random.SeedSequence) -> Any:
        from vllm import SamplingParams as Told
        from vllm.sampling_params import RequestOutputKind

        greedy = sampling.greedy
        return Told(
            n=1 if greedy else group_size,  # it refuses more: they would all be the same
            # sibling i draws with seed + i: far apart, so that no two prompts share one
            seed=None if greedy else int(seeds.generate_state(1, np.uint64)[0] >> 2),
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            min_p=0.0 if greedy else sampling.min_p,
            max_tokens=sampling.max_completion_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            logprobs=0,
            logit_bias=self.bias,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, output: Any, group_size: int, index: int, *, greedy: bool) -> tuple[Completion, ...]:
        siblings = tuple(self._completion(each) for each in sorted(output.outputs, key=lambda each: each.index))
        if len(siblings) != (1 if greedy else group_size):
            raise RolloutError(f"vLLM gave {len(siblings)} completions of prompt {index}, {group_size} were asked for")
        for done in siblings:
            if not all(map(math.isfinite, done.sampler_logprobs or ())):
                raise RolloutError(f"vLLM gave a completion of prompt {index} whose log-probabilities are no numbers")
        return siblings * group_size if greedy else siblings

    def _completion(self, output: Any) -> Completion:
        ids = tuple(output.token_ids)
        return Completion(
            text=self.processor.decode(ids),
            token_ids=ids,
            sampler_logprobs=tuple(at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)),
            finished=output.finish_reason == "stop",
        )

    def _input(self, encoded: EncodedPrompt, index: int) -> Any:
        """Return what vLLM's own processor would make of a prompt, made of ours. RolloutError if its parts differ."""
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems

        ids, salt = encoded.input_ids.tolist(), str(self.version)
        if len(ids) >= self.max_tokens:
            raise RolloutError(f"prompt {index} has {len(ids)} tokens, the engine takes {self.max_tokens} in all")
        if not len(encoded.grid_thw):
            return tokens_input(ids, cache_salt=salt)
        if len(encoded.grid_thw) > MAX_CLIPS:
            raise RolloutError(f"prompt {index} shows {len(encoded.grid_thw)} videos and images: at most {MAX_CLIPS}")
        items: dict[str, list[Any]] = {}
        keys: dict[str, list[str]] = {}
        places: dict[str, list[Any]] = {}
        for kind, item, key, place in self._blocks(encoded, index):
            items.setdefault(kind, []).append(item)
            keys.setdefault(kind, []).append(key)
            places.setdefault(kind, []).append(place)
        return mm_input(ids, MultiModalKwargsItems(items), keys, places, cache_salt=salt)

    def _blocks(self, encoded: EncodedPrompt, index: int) -> Iterator[tuple[str, Any, str, Any]]:
        """Yield each video and image: which of them, its tensors, its key in the caches, and its place."""
        from vllm.multimodal.inputs import (
            MultiModalBatchedField,
            MultiModalFieldElem,
            MultiModalFlatField,
            MultiModalKwargsItem,
            PlaceholderRange,
        )

        merged = self.config.vision_config.spatial_merge_size**2
        is_vision = backbone_of(self.config.model_type).is_vision(self.config, encoded.input_ids)
        where = is_vision.nonzero().flatten().tolist()
        num_patches = len(encoded.pixel_values)
        if not len(where) * merged == num_patches == int(encoded.grid_thw.prod(dim=1).sum()):
            raise RolloutError(
                f"prompt {index}: {len(where)} tokens of videos and images, {num_patches} patches and the grids "
                f"{encoded.grid_thw.tolist()} do not fit together"
            )
        small, patch, token = MultiModalBatchedField(keep_on_cpu=True), 0, 0
        for grid in encoded.grid_thw:
            patches = int(grid.prod())
            own = where[token : token + patches // merged]
            kind = "image" if encoded.input_ids[own[0]] == self.config.image_token_id else "video"
            pixels = encoded.pixel_values[patch : patch + patches]
            flat = MultiModalFlatField(slices=[slice(0, patches)])
            names = ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
            item = MultiModalKwargsItem(
                {
                    names[0]: MultiModalFieldElem(data=pixels, field=flat),
                    names[1]: MultiModalFieldElem(data=grid, field=small),
                    "position_ids": MultiModalFieldElem(data=encoded.position_ids, field=small),
                }
            )
            key = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16)
            key.update(f"{kind} {grid.tolist()} {self.version}".encode())
            first, last = own[0], own[-1]
            between = is_vision[first : last + 1]  # a video may be told in pieces, with times between them
            place = PlaceholderRange(
                offset=first, length=last + 1 - first, is_embed=None if bool(between.all()) else between.clone()
            )
            yield kind, item, key.hexdigest(), place
            patch, token = patch + patches, token + len(own)


def _llm(policy: Policy, *, max_rows: int, max_tokens: int, cache_bytes: float) -> Any:
    """Return vLLM's engine with random weights; what making it does to this process is undone."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    set_num_threads, state = torch.set_num_threads, random_state()
    from vllm import LLM

    device = policy.module.device.type
    of_device: dict[str, Any] = {}
    if device == "cpu":
        # a seeded request that is read in two parts rewinds its generator, which one of a CPU cannot
        of_device = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_tokens), "block_size": 32}
    if collectives.world_size() > 1:
        of_device["distributed_executor_backend"] = "external_launcher"  # an engine on each rank
    try:
        return LLM(
            policy.module.name_or_path,
            load_format="dummy",  # the weights come with the first sync
            dtype=str(policy.module.dtype).removeprefix("torch."),
            max_model_len=max_tokens,
            max_num_seqs=max_rows,
            kv_cache_memory_bytes=int(cache_bytes),
            limit_mm_per_prompt={"image": MAX_CLIPS, "video": MAX_CLIPS},
            skip_mm_profiling=True,
            mm_device_do_normalize=False,  # the patches are normalised already; by default it would be done again
            mm_processor_cache_gb=0,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # at the temperature, after top-p and min-p
            generation_config="vllm",
            enforce_eager=device == "cpu",
            seed=0,
            **of_device,
        )
    finally:
        torch.set_num_threads = set_num_threads  # on a CPU replaced by a warning, for the learner too
        set_random_state(state)


def _use_given_positions(model: Any) -> None:
    """Let a model of vLLM take the positions that come with a video or an image, not count its own."""
    own = model.get_mrope_input_positions

    def positions(input_tokens: list[int], mm_features: list[Any], *args: Any) -> tuple[torch.Tensor, int]:
        for feature in mm_features:
            if feature.data is not None and "position_ids" in feature.data:
                given = feature.data["position_ids"].data
                return given, int(given.max()) + 1 - len(input_tokens)
        found: tuple[torch.Tensor, int] = own(input_tokens, mm_features, *args)
        return found

    model.get_mrope_input_positions = positions


def _pack_tied_head(model: Any) -> None:
    """On a CPU the head keeps a packed copy of its weights, which a reload of tied embeddings forgets."""
    head, embedding = model.language_model.lm_head, model.language_model.model.embed_tokens
    if hasattr(head, "cpu_linear") and head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)
