"""What is held, counted in real models and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig

from experiments.bench.families import SMALL
from experiments.bench.shape import load_policy, random_group, small, write_settings
from tests.policy.builders import make_policy, ragged_groups, whole_batch
from vidbridge.config.choices import Dtype
from vidbridge.config.schema import ModelConfig
from vidbridge.memory_plan.memory import FLOAT, Groups, Memory, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.policy.adapters import LoraConfig
from vidbridge.policy.model_folder import read_config
from vidbridge.rollout.base import EngineMemory

# 2 + 2 layers of the usual kinds, wide enough that what the arithmetic leaves out is small
SHAPE = replace(SMALL, num_hidden_layers=2, vision_depth=2, full_attention_blocks=(1,))


LORA = LoraConfig(rank=4, targets=["language_model", "visual"])


def spec(
    dtype: str = "float32",
    frozen: tuple[str, ...] = (),
    checkpointing: bool = False,
    adapter: LoraConfig | None = None,
) -> ModelConfig:
    return ModelConfig(
        name="",
        path="",
        dtype=Dtype(dtype),
        frozen=list(frozen),
        gradient_checkpointing=checkpointing,
        adapter=adapter,
    )


def size_of(folder: Path, **of_spec) -> ModelSize:
    return ModelSize.of(read_config(str(folder)), spec(**of_spec))


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Qwen2_5_VLConfig:
    config = small(SHAPE)
    write_settings(tmp_path_factory.mktemp("settings"), config)
    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [(), ("visual",)])
@pytest.mark.parametrize("adapter", [None, LORA])
def test_weights_gradients_and_optimizer_are_those_of_the_engine(random_qwen_folder, dtype, frozen, adapter):
    policy = make_policy(random_qwen_folder, dtype=dtype, frozen=list(frozen), adapter=adapter)
    engine = policy.engine
    batch = whole_batch(policy, ragged_groups(policy))
    policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
    gradients = sum(master.grad.nbytes for master in engine.masters)
    policy.update()
    states = [state[key] for state in engine.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    copies = [master for weight, master in zip(engine.trained, engine.masters) if master is not weight]
    held = {
        "weights": sum(weight.nbytes for weight in policy.module.parameters()),
        "optimizer": sum(tensor.nbytes for tensor in states + copies),
        "gradients": gradients,
    }
    model = size_of(random_qwen_folder, dtype=dtype, frozen=frozen, adapter=adapter)
    moment = Memory(model=model, sharding=Sharding(), on_gpu=False).updating(host=0.0)
    assert {part: value for part, value in moment.device.items() if value} == held
    assert moment.total == sum(held.values())


def test_a_model_without_memory_has_the_numbers_of_the_real_one(random_qwen_folder, settings):
    policy = make_policy(random_qwen_folder)
    model = size_of(random_qwen_folder)
    assert model.weights == model.trained == sum(weight.numel() for weight in policy.module.parameters())
    assert model.in_vocabulary == policy.module.lm_head.weight.numel()
    # 12.4 M of SMALL less 6 of 8 text and 4 of 6 vision layers; the tied embedding of 4096 x 256 counts once
    tied = ModelSize.of(settings, spec(frozen=("language_model.embed_tokens",)))
    assert tied.weights - tied.trained == tied.in_vocabulary == 4096 * 256
    assert tied.trains_vision and not tied.trains_vocabulary


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [None, LORA])
def test_activations_are_the_tensors_that_a_real_forward_pass_saves(dtype, checkpointing, adapter):
    policy = load_policy(
        SHAPE,
        max_packed_tokens=4096,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        adapter=adapter,
        device="cpu",
    )
    sizes = {"video_tokens": 128, "group_size": 4, "completion_tokens": 33}
    groups = [random_group(policy.processor, **sizes, seed=seed) for seed in range(2)]
    batch = policy.collate(groups, torch.ones(8), torch.ones(8, 33))
    weights = {weight.untyped_storage().data_ptr() for weight in policy.module.parameters()}
    weights.add(batch.pixel_values.untyped_storage().data_ptr())  # counted as "patches"
    saved: dict[int, torch.Tensor] = {}  # by storage: views of one count once; kept, so that no address is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            saved.setdefault(place, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(batch)
    model = ModelSize.of(policy.processor.config, spec(dtype, checkpointing=checkpointing, adapter=adapter))
    row = Groups(
        number=2,
        siblings=4,
        prompt_tokens=len(groups[0].encoded.input_ids),
        completion_tokens=33,
        patches=len(groups[0].encoded.pixel_values),
    )
    assert row.tokens == len(batch.input_ids)
    memory = Memory(model=model, sharding=Sharding(), on_gpu=False)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert memory._saved_text(row) + memory._saved_vision(row) == pytest.approx(counted, rel=0.03)


def test_adapters_of_a_layer_by_hand(settings):
    """Two layers of rank 4: q 256 x 256, k and v 256 x 64, o 256 x 256; gate and up 256 x 512, down 512 x 256."""
    model = ModelSize.of(settings, spec(adapter=LoraConfig(rank=4)))
    text = settings.text_config
    wide, keys, inner = text.hidden_size, model.key_width, text.intermediate_size
    assert model.trained == 2 * 4 * (2 * (wide + wide) + 2 * (wide + keys) + 3 * (wide + inner))
    assert model.weights == ModelSize.of(settings, spec()).weights + model.trained
    assert model.has_adapters and not model.trains_vision and not model.trains_vocabulary


def test_a_frozen_tower_saves_nothing(settings):
    frozen = Memory(
        model=ModelSize.of(settings, spec(frozen=("visual",))), sharding=Sharding(), on_gpu=True
    )
    row = Groups(number=1, siblings=2, prompt_tokens=10, completion_tokens=3, patches=4)
    assert frozen._saved_vision(row) == frozen._vision_work(row) == 0


# W weights, all trained, in bfloat16 (2 bytes) with masters and two moments in 32 bits (12), gradients in 32 bits (4)
# and those joined for the update (4): by stage, a rank of four
DIVIDED = {
    (0, False): {"weights": 2, "optimizer": 12, "gradients": 4},
    (2, False): {"weights": 2, "optimizer": 12 / 4, "gradients": (4 + 4) / 4},
    (3, False): {"weights": 2 / 4, "optimizer": 12 / 4, "replica": 2, "gradients": (4 + 4) / 4},
    (3, True): {"replica": 2},
}


@pytest.mark.parametrize("stage, offload", DIVIDED)
def test_what_zero_divides(settings, stage, offload):
    model = ModelSize.of(settings, spec("bfloat16"))
    memory = Memory(model=model, sharding=Sharding(stage=stage, ranks=4, offload=offload), on_gpu=True)
    moment = memory.updating(host=7.0)
    expected = {part: factor * model.weights for part, factor in DIVIDED[stage, offload].items()}
    assert {part: value for part, value in moment.device.items() if value} == expected
    on_host = {"weights": 0.5, "optimizer": 3.0, "gradients": 2.0} if offload else {}
    assert moment.host == {"videos": 7.0, **{part: factor * model.weights for part, factor in on_host.items()}}


def test_weights_that_are_divided_are_read_by_every_rank_before(settings):
    memory = Memory(model=ModelSize.of(settings, spec("bfloat16")), sharding=Sharding(stage=3, ranks=4), on_gpu=True)
    whole = {"whole weights": 2 * memory.model.weights}
    assert (memory.loading().device, memory.loading().host) == ({}, whole)
    assert replace(memory, on_gpu=False).loading().device == whole


def test_a_reference_is_a_second_copy_of_the_weights(settings):
    model = ModelSize.of(settings, spec("bfloat16"))
    without = Memory(model=model, sharding=Sharding(), on_gpu=True)
    both = replace(without, has_reference=True)
    assert both.updating(host=0.0).total - without.updating(host=0.0).total == 2 * model.weights


def test_another_engine_is_held_all_the_time_and_is_handed_a_weight_at_a_time(settings):
    """An engine of 4 + 1 MB; the embedding, the largest weight, has 4096 x 256 numbers of 2 bytes."""
    model = ModelSize.of(settings, spec("bfloat16"))
    memory = Memory(model=model, sharding=Sharding(), on_gpu=True)
    groups = Groups(number=3, siblings=4, prompt_tokens=100, completion_tokens=2050, patches=1)
    beside = replace(memory, engine=EngineMemory(weights=4e6, cache=1e6))
    assert beside.updating(host=0.0).total - memory.updating(host=0.0).total == 5e6
    sampling = beside.sampling("rollout", groups, host=0.0)
    assert sampling.device["rollout engine"] == 5e6
    assert not {"KV cache", "reading", "drawing"} & set(sampling.device)  # all of that is in its cache
    assert sampling.device["gathered weights"] == 2 * 4096 * 256  # copied, as the learner goes on to hold its own
    divided = replace(beside, sharding=Sharding(stage=3, ranks=4)).sampling("rollout", groups, host=0.0)
    assert divided.device["gathered weights"] == 2 * 2 * 4096 * 256


def test_an_engine_that_sleeps_is_on_the_gpu_while_it_samples_alone(settings):
    memory = Memory(model=ModelSize.of(settings, spec("bfloat16")), sharding=Sharding(), on_gpu=True)
    asleep = replace(memory, engine=EngineMemory(weights=4e6, cache=1e6, sleeps=True))
    row = Groups(number=3, siblings=4, prompt_tokens=100, completion_tokens=5, patches=1)
    assert asleep.sampling("rollout", row, host=7.0).device["rollout engine"] == 5e6
    for with_it, without in (
        (asleep.updating(host=7.0), memory.updating(host=7.0)),
        (asleep.learning(row, all_patches=1, host=7.0), memory.learning(row, all_patches=1, host=7.0)),
    ):
        assert with_it.device == without.device
        assert with_it.host == {"videos": 7.0, "rollout engine": 4e6}


@pytest.mark.parametrize("adapter", [None, LORA])
@pytest.mark.parametrize("has_reference", [False, True])
@pytest.mark.parametrize("engine", [None, EngineMemory(weights=0.0, cache=0.0)])
def test_there_is_a_replica_where_something_needs_all_of_a_divided_model(settings, adapter, has_reference, engine):
    """Our own rollout does, and the reference of adapters; the reference of a whole model is a copy of its own."""
    model = ModelSize.of(settings, spec("bfloat16", adapter=adapter))
    zero3 = Sharding(stage=3, ranks=4)
    memory = Memory(model=model, sharding=zero3, on_gpu=True, has_reference=has_reference, engine=engine)
    held, copy = memory.updating(host=0.0).device, 2 * model.weights
    assert held["reference"] == (copy if has_reference and adapter is None else 0.0)
    assert held["replica"] == (copy if engine is None or (has_reference and adapter is not None) else 0.0)
    assert replace(memory, sharding=Sharding(stage=2, ranks=4)).updating(host=0.0).device["replica"] == 0.0


def test_the_cache_of_a_rollout_by_hand(settings):
    """3 prompts of 100 tokens x 4 completions of 2050: room for 4096 columns, and a copy of three quarters of them."""
    memory = Memory(model=ModelSize.of(settings, spec()), sharding=Sharding(), on_gpu=False)
    groups = Groups(number=3, siblings=4, prompt_tokens=100, completion_tokens=2050, patches=1)
    token = 2 * 2 * (2 * 32) * FLOAT  # key and value, 2 layers, 2 heads of 32
    cache = memory.sampling("rollout", groups, host=0.0).device["KV cache"]
    assert cache == token * (3 * 100 + 1.75 * 3 * 4 * 4096)


def test_a_row_takes_what_the_budget_allows_and_at_least_one_group():
    groups = Groups(number=5, siblings=2, prompt_tokens=80, completion_tokens=11, patches=1)
    assert groups.tokens == 5 * 100
    assert [groups.in_one_row(budget).number for budget in (10, 199, 200, 10_000)] == [1, 1, 2, 5]


@given(
    sizes=st.tuples(*[st.integers(1, 30)] * 5),
    grown=st.sampled_from(["number", "siblings", "prompt_tokens", "completion_tokens", "patches"]),
    on_gpu=st.booleans(),
    checkpointing=st.booleans(),
)
def test_more_of_anything_never_takes_less(settings, sizes, grown, on_gpu, checkpointing):
    names = ("number", "siblings", "prompt_tokens", "completion_tokens", "patches")
    small = Groups(**dict(zip(names, sizes)))
    large = replace(small, **{grown: 2 * getattr(small, grown)})
    model = ModelSize.of(settings, spec(checkpointing=checkpointing))
    memory = Memory(model=model, sharding=Sharding(), on_gpu=on_gpu)
    moments = [
        (memory.sampling("rollout", groups, host=1.0), memory.learning(groups, all_patches=100, host=1.0))
        for groups in (small, large)
    ]
    for less, more in zip(*moments):
        assert more.total >= less.total
