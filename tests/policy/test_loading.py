"""Loading: the replaced patch embedding is equal, frozen parts stay, wrong requests are named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

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


def test_weights_that_will_be_divided_wait_on_the_cpu(random_qwen_folder):
    """A device that holds nothing stands for a GPU."""
    model = load_model(str(random_qwen_folder), device="meta", divided=True)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    whole = load_model(str(random_qwen_folder), device="cpu")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), whole.parameters(), strict=True))


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
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation=flash_attention_2: .*FlashAttention2"),
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


def rewritten(folder, target, change):
    """A copy of ``folder`` with ``change(weights)`` for weights."""
    shutil.copytree(folder, target)
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def renamed(weights, prefix):
    return {prefix + name: weight for name, weight in weights.items()}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: renamed(w, "base_model.model."), "begin with 'base_model.model.'"),  # peft
        (lambda w: renamed(w, "module."), "begin with 'module.'"),  # torch's data parallelism
        (lambda w: without(w, "model.layers.1."), r"lack model.language_model.layers.1.input_.* and 9 more.* cut by"),
        (lambda w: without(w, "visual."), "lack model.visual.blocks.0.attn.proj.bias"),
        (lambda w: without(w, "lm_head."), "lack lm_head.weight, .* tie_word_embeddings=true"),
        (
            lambda w: without(w, "model.norm.") | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)},
            "lack model.language_model.norm.weight.*weights of an adapter",
        ),
        (
            lambda w: without(w, "model.norm.") | {"model.layers.0.mlp.up_proj.qweight": torch.ones(2, 2).int()},
            "lack model.language_model.norm.weight.*quantised",
        ),
        (
            lambda w: {**w, "model.norm.weight": torch.ones(31)},
            "model.language_model.norm.weight is 31 in the file, 32 by the configuration",
        ),
    ],
)
def test_weights_that_leave_a_part_of_the_model_random_are_refused(random_qwen_folder, tmp_path, change, message):
    folder = rewritten(random_qwen_folder, tmp_path / "copy", change)
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


def without(weights, prefix):
    kept = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    assert len(kept) < len(weights)
    return kept


def test_weights_that_nobody_needs_are_told_in_a_line(random_qwen_folder, tmp_path, caplog, capfd):
    folder = rewritten(random_qwen_folder, tmp_path / "copy", lambda w: {**w, "aux.weight": torch.ones(1)})
    model = load_model(folder, device="cpu")
    assert [record.getMessage() for record in caplog.records if "aux" in record.getMessage()] == [
        f"not used of the weights at {folder!r}: aux.weight"
    ]
    assert "LOAD REPORT" not in capfd.readouterr().err
    assert same_weights(model, load_model(str(random_qwen_folder), device="cpu"))


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def sharded(random_qwen_folder, tmp_path):
    """The random model in several files."""
    folder = shutil.copytree(random_qwen_folder, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    model.save_pretrained(folder, max_shard_size="50kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_are_read_and_each_of_their_faults_is_named(sharded, random_qwen_folder):
    assert same_weights(load_model(str(sharded)), load_model(str(random_qwen_folder)))
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"cannot read the weights in {shard}"):
        load_model(str(sharded))
    shard.unlink()
    with pytest.raises(ValueError, match=f"cannot load a model from .*{shard.name}"):
        load_model(str(sharded))
    shard.write_bytes(content)
    index = sharded / "model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(ValueError, match="model.safetensors.index.json is not JSON"):
        load_model(str(sharded))


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_lm_head_is_never_missing(random_qwen_folder, tmp_path, tied):
    """The released 3B is tied, 7B is not; both are read in 32 bits and in 16."""
    folder = tmp_path / "tied"
    shutil.copytree(random_qwen_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict({**config, "tie_word_embeddings": tied}))
    model.to(torch.bfloat16).save_pretrained(folder)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != tied
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight.float(), atol=0, rtol=0)


def test_bfloat16_is_loaded_and_gives_finite_numbers(random_qwen_folder):
    policy = make_policy(random_qwen_folder, dtype="bfloat16")
    assert {weight.dtype for weight in policy.module.parameters()} == {torch.bfloat16}
    batch = whole_batch(policy, ragged_groups(policy))
    logprobs, entropy = policy.logprobs(batch)
    assert logprobs.dtype == torch.float32 and logprobs.isfinite().all() and entropy.isfinite().all()
