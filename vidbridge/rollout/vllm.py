"""The rollout of vLLM (arXiv 2309.06180), in the process of each rank: written against vLLM 0.32.

Its random numbers are others than ours, drawn from the same distribution. A prompt and its video are computed once for
all siblings, by its prefix cache. With ``tensor_parallel`` above 1 so many neighbouring ranks share one engine: each
holds a part of every layer, is given the prompts of all of them and keeps its own completions. With ``sleep`` the
engine leaves a GPU to the learner while nothing is sampled. What it is given and gives: vllm_parts.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Any, Sequence

import torch
import torch.distributed as distributed
from transformers import PretrainedConfig

from vidbridge.config.checks import require, require_positive
from vidbridge.policy.policy import Policy
from vidbridge.rollout import vllm_parts
from vidbridge.rollout.base import Ended, EngineMemory, Progress, RolloutConfig
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
    tensor_parallel: int = 1  # neighbouring ranks of a machine that share an engine, and its weights
    sleep: bool = False  # the memory of the GPU is the learner's while nothing is sampled

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("rollout", self, "cache_gb", "tensor_parallel")
        vllm_parts.check_temperature(self.temperature)

    def engine_memory(self, weights: float) -> EngineMemory:
        return EngineMemory(weights=weights / self.tensor_parallel, cache=1e9 * self.cache_gb, sleeps=self.sleep)

    def check_here(self) -> None:
        require(find_spec("vllm") is not None, "rollout=vllm needs vLLM, which is not installed: docs/vllm.md")

    def check_model(self, model: PretrainedConfig, *, device: torch.device, local_ranks: int) -> None:
        told = f"rollout.sleep=true frees the memory of a GPU, and the model is on {device}: set it to false"
        require(not self.sleep or device.type == "cuda", told)
        parts, key = self.tensor_parallel, f"rollout.tensor_parallel={self.tensor_parallel}"
        require(local_ranks % parts == 0, f"{key} does not divide the {local_ranks} ranks of a machine into groups")
        text, vision = model.text_config, model.vision_config
        divided = {
            "attention heads": text.num_attention_heads,
            "heads of the vision tower": vision.num_heads,
            "inner numbers of an MLP": getattr(text, "moe_intermediate_size", text.intermediate_size),
            "inner numbers of an MLP of the vision tower": vision.intermediate_size,
        }
        for what, number in divided.items():
            require(number % parts == 0, f"{key} does not divide the {number} {what} of the model")
        heads = text.num_key_value_heads  # each on several ranks where there are more ranks than heads
        told = f"{key}: it must divide the {heads} key and value heads of the model, or be a multiple of them"
        require(heads % parts == 0 or parts % heads == 0, told)

    def build(self, policy: Policy) -> VllmRollout:
        self.check_here()
        return VllmRollout(
            policy,
            max_rows=self.max_rows,
            max_completion_tokens=self.max_completion_tokens,
            cache_bytes=1e9 * self.cache_gb,
            tensor_parallel=self.tensor_parallel,
            sleeps=self.sleep,
        )


class VllmRollout:
    """A completion is a function of weights, prompt, seed and index, whatever is sampled beside it.

    ``sampler_logprobs`` belong to the distribution that was drawn from. ``max_completion_tokens`` is the most that
    ``generate`` may be asked for. The ranks that share an engine call ``generate`` with the same ``group_size``,
    ``sampling`` and ``seed``.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_rows: int,
        max_completion_tokens: int,
        cache_bytes: float,
        tensor_parallel: int = 1,
        sleeps: bool = False,
    ):
        self.processor, self.config = policy.processor, policy.processor.config
        longest = policy.processor.max_prompt_tokens + max_completion_tokens
        self.max_tokens = min(longest, self.config.text_config.max_position_embeddings)
        self.suppressed_ids = policy.suppressed_ids.tolist()
        self.version, self.sleeps, self.is_asleep = 0, sleeps, False
        self.llm = _llm(
            policy,
            max_rows=max_rows * tensor_parallel,
            max_tokens=self.max_tokens,
            cache_bytes=cache_bytes,
            tensor_parallel=tensor_parallel,
            sleeps=sleeps,
        )
        collectives.before_leaving(self.close)
        self.group = vllm_parts.sharing_group()
        self.llm.apply_model(vllm_parts.use_given_positions)
        self.sync(policy)
        self._sleep()

    def sync(self, policy: Policy) -> None:
        """Copy the weights as they are now, a layer at a time; called by all ranks."""
        self._wake_up()
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
        requests, own = self._requests(prompts, range(len(prompts)) if indices is None else indices)
        self._wake_up()
        engine = self.llm.llm_engine
        for number, (encoded, index) in enumerate(requests):
            told = vllm_parts.sampling_params(
                sampling, group_size, seed=vllm_parts.seed_of(seed, index), suppressed_ids=self.suppressed_ids
            )
            given = vllm_parts.engine_input(encoded, self.config, version=str(self.version))
            engine.add_request(str(number), given, told)
        groups: dict[int, tuple[Completion, ...]] = {}
        num_done, error = 0, None
        while engine.has_unfinished_requests():
            done = [output for output in engine.step() if output.finished]
            num_done += len(done)
            if error is not None:
                continue
            try:
                for output in done:
                    if (number := int(output.request_id)) in own:
                        encoded, index = requests[number]
                        name = vllm_parts.name_of(encoded, index)
                        groups[number] = self._completions(output, group_size, sampling, name)
                        if ended is not None:
                            ended(index, groups[number])
                if progress is not None and num_done:
                    progress(num_done / len(requests))
            except Exception as raised:  # kept to the end: who shares the engine cannot sample without this rank
                error = raised
        self._sleep()
        if error is not None:
            raise error
        return [groups[number] for number in own]

    def _requests(
        self, prompts: Sequence[EncodedPrompt], indices: Sequence[int]
    ) -> tuple[list[tuple[EncodedPrompt, int]], range]:
        """Return the prompts of all ranks that share the engine, with their indices, and the numbers of this rank's.

        All of these ranks raise where one has a prompt that is refused, before any is handed over.
        """
        own = list(zip(prompts, indices, strict=True))
        with collectives.fail_together(self.group):
            for encoded, index in own:
                vllm_parts.check_prompt(encoded, self.config, max_tokens=self.max_tokens, index=index)
        parts = collectives.all_gather(own, self.group)
        first = sum(map(len, parts[: distributed.get_rank(self.group)]))
        return list(chain(*parts)), range(first, first + len(own))

    def _wake_up(self) -> None:
        if self.is_asleep:
            torch.cuda.empty_cache()  # what the learner's allocator keeps for later is in the way
            self.llm.wake_up()
            self.is_asleep = False

    def _sleep(self) -> None:
        """Give the memory back. The weights wait in the CPU's: an evaluation samples many times after one sync."""
        if self.sleeps:
            self.llm.sleep(level=1)
            self.is_asleep = True

    def _completions(
        self, output: Any, group_size: int, sampling: SamplingParams, name: str
    ) -> tuple[Completion, ...]:
        siblings = sorted(output.outputs, key=lambda each: each.index)
        return vllm_parts.completions_of(
            [vllm_parts.token_output(each) for each in siblings],
            group_size,
            self.processor.decode,
            greedy=sampling.greedy,
            name=name,
        )


def _llm(
    policy: Policy, *, max_rows: int, max_tokens: int, cache_bytes: float, tensor_parallel: int, sleeps: bool
) -> Any:
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
            tensor_parallel_size=tensor_parallel,
            enable_sleep_mode=sleeps,
            **({"distributed_executor_backend": "external_launcher"} if many else {}),  # our ranks, none of its own
            **vllm_parts.engine_arguments(policy.module.device.type, max_tokens=max_tokens, max_rows=max_rows),
        )
    finally:
        torch.set_num_threads = set_num_threads  # on a CPU replaced by a warning, for the learner too
        set_random_state(state)
