"""Loading: the replaced patch embedding is equal, frozen parts stay, wrong requests are named."""

import json
import shutil

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.policy.builders import make_policy, ragged_groups, whole_batch
from vidbridge.policy.loading import load_model


def test_patch_embedding_by_matmul_is_the_convolution(random_qwen_folder):
    ours = load_model(str(random_qwen_folder), device="cpu")
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    patches = torch.randn(24, 96)  # 3 channels * 2 frames * 4 * 4 pixels
    outputs = []
    for model in (ours, plain):
        embed = model.model.visual.patch_embed
        result = embed(patches)
        result.square().sum().backward()
        outputs.append((result.detach(), embed.proj.weight.grad))
    assert outputs[0][0].shape == (24, 16)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert type(ours) is Qwen2_5_VLForConditionalGeneration


def test_frozen_parts_do_not_move(random_qwen_folder):
    policy = make_policy(random_qwen_folder, frozen=["visual", "model.language_model.embed_tokens"])
    before = {name: weight.clone() for name, weight in policy.module.named_parameters()}
    batch = whole_batch(policy, ragged_groups(policy))
    policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
    policy.update()
    frozen = ("model.visual.", "model.language_model.embed_tokens.")
    for name, weight in policy.module.named_parameters():
        assert torch.equal(weight, before[name]) == name.startswith(frozen), name


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"frozen": ["vision"]}, "cannot freeze 'vision': .* it has language_model, lm_head, visual"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; known: float32, bfloat16"),
        ({"device": "foo"}, "model.device=foo cannot be used here"),
        ({"device": "cuda:99"}, "model.device=cuda:99 cannot be used here"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation=flash_attention_2 cannot be used"),
    ],
)
def test_unknown_names_are_refused(random_qwen_folder, request_, message):
    with pytest.raises(ValueError, match=message):
        load_model(str(random_qwen_folder), **request_)


def test_a_path_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot load a model from '.*nowhere'"):
        load_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_damaged_file_of_weights_is_named(random_qwen_folder, tmp_path, kept):
    folder = shutil.copytree(random_qwen_folder, tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match="cannot read the weights in .*/model.safetensors"):
        load_model(str(folder), device="cpu")
    weights.unlink()
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        load_model(str(folder), device="cpu")


def test_another_model_family_is_refused(random_qwen_folder, tmp_path):
    folder = shutil.copytree(random_qwen_folder, tmp_path / "copy")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="holds a 'qwen2' model; only qwen2_5_vl is supported"):
        load_model(str(folder))


def test_bfloat16_is_loaded_and_gives_finite_numbers(random_qwen_folder):
    policy = make_policy(random_qwen_folder, dtype="bfloat16")
    assert {weight.dtype for weight in policy.module.parameters()} == {torch.bfloat16}
    batch = whole_batch(policy, ragged_groups(policy))
    logprobs, entropy = policy.logprobs(batch)
    assert logprobs.dtype == torch.float32 and logprobs.isfinite().all() and entropy.isfinite().all()
