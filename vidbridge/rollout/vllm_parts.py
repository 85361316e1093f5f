"""What vLLM is given and what it gives, wherever it runs: written against vLLM 0.32.

It is given what the learner learns from (token ids, patches, grids and positions) and reads no video of its own. The
version of the weights is part of every key of its caches, so that nothing made of older ones is found in them.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch

from vidbridge.backbones import backbone_of
from vidbridge.config.checks import require
from vidbridge.errors import RolloutError
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

NEVER = -100.0  # the lowest bias that vLLM takes; e to that power is nothing beside the sum of a softmax
MAX_CLIPS = 16  # videos of a prompt, and as many images
MAX_TEMPERATURE = 2.0
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it pins the threads of whoever runs it
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def engine_arguments(device: str, *, max_tokens: int, max_rows: int) -> dict[str, Any]:
    """Return what every engine is made with; ``device`` is "cpu" or "cuda"."""
    of_cpu: dict[str, Any] = {}
    if device == "cpu":
        # a seeded request that is read in two parts rewinds its generator, which one of a CPU cannot
        of_cpu = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_tokens), "block_size": 32}
    return {
        "load_format": "dummy",  # the weights come from the learner
        "max_model_len": max_tokens,
        "max_num_seqs": max_rows,
        "limit_mm_per_prompt": {"image": MAX_CLIPS, "video": MAX_CLIPS},
        "skip_mm_profiling": True,
        "mm_device_do_normalize": False,  # the patches are normalised already; by default it would be done again
        "mm_processor_cache_gb": 0,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # at the temperature, after top-p and min-p
        "generation_config": "vllm",
        "enforce_eager": device == "cpu",
        "seed": 0,
        **of_cpu,
    }


def seed_of(seed: int, index: int) -> int:
    """Return the seed of a prompt. Sibling i draws with this + i: far apart, so that no two prompts share one."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 2)


def sampling_params(sampling: SamplingParams, group_size: int, *, seed: int, suppressed_ids: Sequence[int]) -> Any:
    """Return vLLM's own SamplingParams; ``seed`` is that of ``seed_of``."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = sampling.greedy
    return VllmSamplingParams(
        n=1 if greedy else group_size,  # it refuses more: they would all be the same
        seed=None if greedy else seed,
        temperature=0.0 if greedy else sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        min_p=0.0 if greedy else sampling.min_p,
        max_tokens=sampling.max_completion_tokens,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        logprobs=0,
        logit_bias={token: NEVER for token in suppressed_ids},
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def token_output(output: Any) -> dict[str, Any]:
    """Return what counts of one of vLLM's completions, as JSON has it."""
    ids = list(output.token_ids)
    return {
        "token_ids": ids,
        "logprobs": [float(at[token].logprob) for token, at in zip(ids, output.logprobs, strict=True)],
        "finished": output.finish_reason == "stop",
    }


def completions_of(
    outputs: Sequence[dict[str, Any]],
    group_size: int,
    decode: Callable[[Sequence[int]], str],
    *,
    greedy: bool,
    name: str,
) -> tuple[Completion, ...]:
    """Return the completions of a prompt. RolloutError where there are not as many, or one has no probabilities."""
    wanted = 1 if greedy else group_size
    if len(outputs) != wanted:
        raise RolloutError(f"vLLM gave {len(outputs)} completions of {name}, {wanted} were asked for")
    done = []
    for output in outputs:
        ids, logprobs = tuple(output["token_ids"]), tuple(output["logprobs"])
        if not ids or len(ids) != len(logprobs) or not all(map(math.isfinite, logprobs)):
            raise RolloutError(f"vLLM gave a completion of {name} whose log-probabilities are no numbers")
        text = decode(ids)
        done.append(Completion(text=text, token_ids=ids, sampler_logprobs=logprobs, finished=output["finished"]))
    return tuple(done) * (group_size if greedy else 1)


def name_of(encoded: EncodedPrompt, index: int) -> str:
    """Return what errors call a prompt."""
    return encoded.uid or f"prompt {index}"


def check_temperature(temperature: float) -> None:
    told = f"rollout.temperature={temperature:g}: vLLM takes no more than {MAX_TEMPERATURE:g}"
    require(temperature <= MAX_TEMPERATURE, told)


def check_prompt(encoded: EncodedPrompt, config: Any, *, max_tokens: int, index: int) -> None:
    """RolloutError for a prompt that an engine of ``max_tokens`` would not take, or whose parts do not fit together."""
    name = name_of(encoded, index)
    if len(encoded.input_ids) >= max_tokens:
        raise RolloutError(f"{name} has {len(encoded.input_ids)} tokens, the engine takes {max_tokens} in all")
    if len(encoded.grid_thw) > MAX_CLIPS:
        raise RolloutError(f"{name} shows {len(encoded.grid_thw)} videos and images: at most {MAX_CLIPS}")
    num_tokens = int(backbone_of(config.model_type).is_vision(config, encoded.input_ids).sum())
    merged, num_patches = config.vision_config.spatial_merge_size**2, len(encoded.pixel_values)
    if not num_tokens * merged == num_patches == int(encoded.grid_thw.prod(dim=1).sum()):
        raise RolloutError(
            f"{name}: {num_tokens} tokens of videos and images, {num_patches} patches and the grids "
            f"{encoded.grid_thw.tolist()} do not fit together"
        )


def engine_input(encoded: EncodedPrompt, config: Any, *, version: str) -> Any:
    """Return what vLLM's own processor would make of a prompt that ``check_prompt`` lets pass, made of ours."""
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems

    ids = encoded.input_ids.tolist()
    if not len(encoded.grid_thw):
        return tokens_input(ids, cache_salt=version)
    items: dict[str, list[Any]] = {}
    keys: dict[str, list[str]] = {}
    places: dict[str, list[Any]] = {}
    for kind, item, key, place in _blocks(encoded, config, version):
        items.setdefault(kind, []).append(item)
        keys.setdefault(kind, []).append(key)
        places.setdefault(kind, []).append(place)
    return mm_input(ids, MultiModalKwargsItems(items), keys, places, cache_salt=version)


def _blocks(encoded: EncodedPrompt, config: Any, version: str) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield each video and image: which of them, its tensors, its key in the caches, and its place."""
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
        PlaceholderRange,
    )

    is_vision = backbone_of(config.model_type).is_vision(config, encoded.input_ids)
    where = is_vision.nonzero().flatten().tolist()
    merged = config.vision_config.spatial_merge_size**2
    small, patch, token = MultiModalBatchedField(keep_on_cpu=True), 0, 0
    for grid in encoded.grid_thw:
        patches = int(grid.prod())
        own = where[token : token + patches // merged]
        kind = "image" if encoded.input_ids[own[0]] == config.image_token_id else "video"
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
        key.update(f"{kind} {grid.tolist()} {version}".encode())
        first, last = own[0], own[-1]
        between = is_vision[first : last + 1]  # a video may be told in pieces, with times between them
        place = PlaceholderRange(
            offset=first, length=last + 1 - first, is_embed=None if bool(between.all()) else between.clone()
        )
        yield kind, item, key.hexdigest(), place
        patch, token = patch + patches, token + len(own)


def sharing_group() -> Any:
    """Return the group of ranks, joined by gloo, with which this one shares the engine that it has made last."""
    from vllm.distributed.parallel_state import get_tp_group

    return get_tp_group().cpu_group


def use_given_positions(model: Any) -> None:
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


def pack_tied_head(model: Any) -> None:
    """On a CPU the head keeps a packed copy of its weights, which a reload of tied embeddings forgets."""
    head, embedding = model.language_model.lm_head, model.language_model.model.embed_tokens
    if hasattr(head, "cpu_linear") and head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)
