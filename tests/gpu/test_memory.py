"""The memory that plan=true predicts against what the device's allocator hands out."""

from __future__ import annotations

import pytest

from experiments.bench import plan


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_step_is_the_predicted_one(checkpointing, record_property):
    """Of 54 M parameters in bfloat16, in a process of its own."""
    setting = plan.Setting(device="cuda", max_packed_tokens=2048, gradient_checkpointing=checkpointing)
    for stage, figures in plan.in_own_process(setting).items():
        record_property(f"{stage}, MB predicted and measured", [figures["predicted"], figures["measured"]])
        assert figures["measured"] == pytest.approx(figures["predicted"], rel=0.25), stage
