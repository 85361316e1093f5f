"""What can be told of rollout=vllm without vLLM; the engine itself: tests/vllm."""

import pytest

from tests.composing import config_of
from vidbridge.errors import ConfigError
from vidbridge.rollout import vllm


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="rollout=vllm needs vLLM, which is not installed: docs/vllm.md"):
        config_of("rollout=vllm").rollout.check_here()
    config_of().rollout.check_here()  # ours needs nothing


def test_it_says_what_it_holds_for_keys_and_values():
    assert config_of("rollout=vllm", "rollout.cache_gb=2.5").rollout.cache_bytes == 2.5e9
    assert config_of().rollout.cache_bytes is None
