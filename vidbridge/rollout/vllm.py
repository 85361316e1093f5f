"""The rollout of vLLM (arXiv 2309.06180), in the process of each rank: written against vLLM 0.32.

Its random numbers are others than ours, drawn from the same distribution. A prompt and its video are computed once for
all siblings, by its prefix cache. What it is given and gives: vllm_parts.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Sequence

import torch

from vidbridge.config.checks import require, require_positive
from vidbridge.policy.policy import Policy
from vidbridge.rollout import vllm_parts
from vidbridge.rollout.base import Ended, Progress, RolloutConfig
from vidbridge.runtime import collectives
from vidbridge.runtime.random_state import random_state, set_random_state
from vidbridge.types import Completion, EncodedPrompt, SamplingParams

ENVIRONMENT = {
    **vllm_parts.ENVIRONMENT,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process: weights are handed over as they are
}


@dataclass(frozen=True, kw_only=True)
class VllmConfig(RolloutConfig):
    cache_gb: float = 1.0  # 10**9 bytes of keys and values on each rank, beside the weights

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("rollout", self, "cache_gb")
        most = vllm_parts.MAX_TEMPERATURE
        require(self.temperature <= most, f"rollout.temperature={self.temperature:g}: vLLM takes no more than {most:g}")

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
        self.suppressed_ids = policy.suppressed_ids.tolist()
        self.version = 0
        self.llm = _llm(policy, max_rows=max_rows, max_tokens=self.max_tokens, cache_bytes=cache_bytes)
        collectives.before_leaving(self.close)
        self.llm.apply_model(vllm_parts.use_given_positions)
        self.sync(policy)

    def sync(self, policy: Policy) -> None:
        """Copy the weights as they are now, a layer at a time; called by all ranks."""
        self.version += 1
        # vLLM keeps them until a layer is complete, and under ZeRO-3 they are gone when the next is asked for
        weights = ((name, weight.clone()) for name, weight in policy.weights())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(vllm_parts.pack_tied_head)
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
        names = [prompt.uid or f"prompt {index}" for prompt, index in zip(prompts, indices, strict=True)]
        # all of them before the first is handed over: one that is refused leaves none behind
        for prompt, name in zip(prompts, names):
            vllm_parts.check_prompt(prompt, self.config, max_tokens=self.max_tokens, name=name)
        for number, (prompt, index) in enumerate(zip(prompts, indices)):
            told = vllm_parts.sampling_params(
                sampling,
                group_size,
                seed=vllm_parts.seed_of(seed, index),
                suppressed_ids=self.suppressed_ids,
            )
            given = vllm_parts.engine_input(prompt, self.config, version=str(self.version))
            engine.add_request(str(number), given, told)
        groups: dict[int, tuple[Completion, ...]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    number = int(output.request_id)
                    siblings = sorted(output.outputs, key=lambda each: each.index)
                    groups[number] = vllm_parts.completions_of(
                        [vllm_parts.token_output(each) for each in siblings],
                        group_size,
                        self.processor.decode,
                        greedy=sampling.greedy,
                        name=names[number],
                    )
                    if ended is not None:
                        ended(indices[number], groups[number])
            if progress is not None and groups:
                progress(len(groups) / len(prompts))
        return [groups[number] for number in range(len(prompts))]


def _llm(policy: Policy, *, max_rows: int, max_tokens: int, cache_bytes: float) -> Any:
    """Return vLLM's engine with random weights; what making it does to this process is undone."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    set_num_threads, state = torch.set_num_threads, random_state()
    from vllm import LLM

    many = collectives.world_size() > 1
    try:
        return LLM(
            policy.module.name_or_path,
            dtype=str(policy.module.dtype).removeprefix("torch."),
            kv_cache_memory_bytes=int(cache_bytes),
            **({"distributed_executor_backend": "external_launcher"} if many else {}),  # an engine on each rank
            **vllm_parts.engine_arguments(policy.module.device.type, max_tokens=max_tokens, max_rows=max_rows),
        )
    finally:
        torch.set_num_threads = set_num_threads  # on a CPU replaced by a warning, for the learner too
        set_random_state(state)
