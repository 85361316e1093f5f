"""What can be told of rollout=vllm without vLLM; the engine itself: tests/vllm."""

from dataclasses import replace

import pytest
import torch

from tests.composing import config_of
from vidbridge.errors import ConfigError
from vidbridge.memory_plan import stand_in
from vidbridge.rollout import vllm
from vidbridge.rollout.base import EngineMemory

CPU = torch.device("cpu")


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="rollout=vllm needs vLLM, which is not installed: docs/vllm.md"):
        config_of("rollout=vllm").rollout.check_here()
    config_of().rollout.check_here()  # ours needs nothing


def test_it_says_what_it_holds_of_the_weights_and_for_keys_and_values():
    held = config_of("rollout=vllm", "rollout.cache_gb=2.5").rollout.engine_memory(8e9)
    assert held == EngineMemory(weights=8e9, cache=2.5e9)
    assert of_vllm(4, "rollout.sleep=true").engine_memory(8e9) == EngineMemory(weights=2e9, cache=1e9, sleeps=True)
    assert config_of().rollout.engine_memory(8e9) is None


def test_sleeping_on_a_cpu_is_refused():
    config = config_of("model=qwen2_5_vl_7b", "rollout=vllm", "rollout.sleep=true")
    model = stand_in.config_of(config.model.shape)
    with pytest.raises(ConfigError, match="rollout.sleep=true frees the memory of a GPU, and the model is on cpu"):
        config.rollout.check_model(model, device=CPU, local_ranks=1)
    config.rollout.check_model(model, device=torch.device("cuda"), local_ranks=1)


@pytest.mark.parametrize(
    ("parts", "local_ranks", "message"),
    [
        (2, 3, "rollout.tensor_parallel=2 does not divide the 3 ranks of a machine into groups"),
        (4, 2, "rollout.tensor_parallel=4 does not divide the 2 ranks of a machine into groups"),
        (3, 3, "rollout.tensor_parallel=3 does not divide the 28 attention heads of the model"),
        (14, 14, "rollout.tensor_parallel=14 does not divide the 16 heads of the vision tower of the model"),
    ],
)
def test_ranks_and_models_that_cannot_be_divided_are_refused(parts, local_ranks, message):
    config = config_of("model=qwen2_5_vl_7b", "rollout=vllm", f"rollout.tensor_parallel={parts}")
    with pytest.raises(ConfigError, match=message):
        config.rollout.check_model(stand_in.config_of(config.model.shape), device=CPU, local_ranks=local_ranks)


def test_key_and_value_heads_are_divided_or_repeated():
    """Of 24 attention heads with 4 of keys and values: 2 and 4 divide them, 8 would hold each twice, 6 fits neither."""
    shape = config_of("model=qwen2_5_vl_7b").model.shape
    sizes = {"num_attention_heads": 24, "num_key_value_heads": 4, "intermediate_size": 24}
    vision = {"num_heads": 24, "intermediate_size": 24}
    model = stand_in.config_of(replace(shape, text={**shape.text, **sizes}, vision={**shape.vision, **vision}))
    for parts in (1, 2, 4, 8):
        of_vllm(parts).check_model(model, device=CPU, local_ranks=parts)
    with pytest.raises(ConfigError, match="tensor_parallel=6: it must divide the 4 key and value heads"):
        of_vllm(6).check_model(model, device=CPU, local_ranks=6)


def of_vllm(parts, *overrides):
    return config_of("rollout=vllm", f"rollout.tensor_parallel={parts}", *overrides).rollout


def test_how_many_share_an_engine_is_a_positive_number():
    with pytest.raises(ConfigError, match="rollout.tensor_parallel must be positive and finite, got 0"):
        of_vllm(0)


def test_ours_takes_every_number_of_ranks_and_every_model():
    config = config_of("model=qwen2_5_vl_7b")
    config.rollout.check_model(stand_in.config_of(config.model.shape), device=CPU, local_ranks=5)
