"""Folders as other releases of transformers lay them out, those that cannot be used, and the layout of our own."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.policy.builders import FRAMES, make_policy, ragged_prompts
from vidbridge.policy.loading import load_model
from vidbridge.policy.model_folder import read_config, rewrite_config
from vidbridge.policy.processor import Processor


@pytest.fixture
def folder(random_qwen_folder, tmp_path):
    return shutil.copytree(random_qwen_folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def content(path):
    return json.loads(path.read_text())


def as_4_49(folder):
    """Flat config.json, and the template where processors of that time kept it."""
    rewrite_config(folder, torch.float32)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def as_4_57(folder):
    images = content(folder / "preprocessor_config.json")
    size = {"shortest_edge": images.pop("min_pixels"), "longest_edge": images.pop("max_pixels")}
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "size": size}))
    del images["image_processor_type"]
    videos = {**images, "size": size, "video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))


def as_5(folder):
    """One file with two sections: the image section as 5.23 writes it, the video one as read from its code."""
    images = Qwen2VLImageProcessorPil.from_pretrained(folder).to_dict()
    videos = {**images, "video_processor_type": "Qwen2VLVideoProcessor"}
    del videos["image_processor_type"]
    whole = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": images, "video_processor": videos}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(whole))


def as_5_without_videos(folder):
    as_5(folder)
    whole = content(folder / "processor_config.json")
    del whole["video_processor"]
    (folder / "processor_config.json").write_text(json.dumps(whole))


def with_the_template_in_the_tokenizer(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)


LAYOUTS = [as_4_49, as_4_57, as_5, as_5_without_videos, with_the_template_in_the_tokenizer]


@pytest.mark.parametrize("lay_out", LAYOUTS)
def test_every_layout_gives_the_same_prompts_and_is_saved_without_loss(folder, random_qwen_folder, tmp_path, lay_out):
    expected = Processor.from_folder(random_qwen_folder, FRAMES)
    lay_out(folder)
    found = Processor.from_folder(folder, FRAMES)
    saved = tmp_path / "saved"
    saved.mkdir()
    found.save(saved)
    shutil.copy(folder / "config.json", saved)
    for prompt in ragged_prompts():
        ours = [processor.encode(prompt) for processor in (expected, found, Processor.from_folder(saved, FRAMES))]
        assert ours[0].input_ids.tolist() == ours[1].input_ids.tolist() == ours[2].input_ids.tolist()
        assert ours[0].pixel_values.equal(ours[1].pixel_values) and ours[1].pixel_values.equal(ours[2].pixel_values)
        assert ours[0].position_ids.equal(ours[1].position_ids)
    # how large frames may be, for those who read with the processor of transformers: in both spellings
    numbers = content(saved / "preprocessor_config.json")
    assert (numbers["min_pixels"], numbers["max_pixels"]) == (64, 4096)
    assert numbers["size"] == {"shortest_edge": 64, "longest_edge": 4096}
    assert numbers["image_processor_type"].startswith("Qwen2VLImageProcessor")


def test_videos_win_over_images_in_either_layout(folder):
    as_5(folder)
    whole = content(folder / "processor_config.json")
    whole["video_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (folder / "processor_config.json").write_text(json.dumps(whole))
    assert Processor.from_folder(folder, FRAMES).numbers["image_mean"] == [0.1, 0.2, 0.3]
    # a file left over from an older release loses against the section, as in transformers
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"image_mean": [0.9, 0.9, 0.9]}))
    assert Processor.from_folder(folder, FRAMES).numbers["image_mean"] == [0.1, 0.2, 0.3]


def test_the_saved_folder_is_of_the_layout_that_transformers_4_reads(random_qwen_folder, tmp_path):
    """What 4.49.0 and 4.57.3 do with it, read from their code and tried: logits equal to 7.6e-6 and to the last digit.

    4.49 takes the text settings from the top of config.json. Both take the base of the rotary positions from
    rope_theta and the sections of its three axes from rope_scaling, whose type "mrope" is the default with three
    positions a token. Both raise for a list of extra_special_tokens, and look up the class of the tokenizer by name.
    """
    policy = make_policy(random_qwen_folder)
    policy.save(tmp_path)
    config = content(tmp_path / "config.json")
    assert "text_config" not in config and "rope_parameters" not in config
    assert config["rope_theta"] == 1000.0
    assert config["rope_scaling"] == {"type": "mrope", "mrope_section": [2, 1, 1]}
    assert (config["model_type"], config["torch_dtype"], config["hidden_size"]) == ("qwen2_5_vl", "float32", 32)
    assert config["vision_config"]["hidden_size"] == 16
    tokenizer = content(tmp_path / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in tokenizer


def test_the_saved_folder_says_what_the_model_was(random_qwen_folder, tmp_path):
    """By the pinned transformers, which reads the flat layout as it reads the released models."""
    policy = make_policy(random_qwen_folder)
    policy.save(tmp_path)
    before, after = policy.module.config, Qwen2_5_VLConfig.from_pretrained(tmp_path)
    rope = dict(after.text_config.rope_parameters)
    assert rope.pop("type") == "mrope" and rope == before.text_config.rope_parameters
    told = ("hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
            "rms_norm_eps layer_types eos_token_id pad_token_id max_position_embeddings use_sliding_window").split()
    for name in told:
        assert getattr(after.text_config, name) == getattr(before.text_config, name), name
    assert {**after.vision_config.to_dict(), "dtype": None} == {**before.vision_config.to_dict(), "dtype": None}
    for name in ("tie_word_embeddings", "video_token_id", "image_token_id", "vision_start_token_id"):
        assert getattr(after, name) == getattr(before, name)
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (random_qwen_folder, tmp_path)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].all_special_ids == tokenizers[1].all_special_ids


def test_longer_contexts_survive_the_flat_layout(folder):
    """YaRN, as the released model's card proposes it: its type is no "mrope", and its factor is kept."""
    config = content(folder / "config.json")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config["text_config"]["rope_parameters"] |= yarn
    (folder / "config.json").write_text(json.dumps(config))
    rewrite_config(folder, torch.float32)
    rope = read_config(str(folder)).text_config.rope_parameters
    assert {name: rope[name] for name in yarn} == yarn and rope["mrope_section"] == [2, 1, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "qwen2"}, "a model of type 'qwen2' is not supported; these are: qwen2_5_vl"),
        ({"model_type": "unheard_of"}, "a model of type 'unheard_of' is not supported"),
        ({"model_type": None}, "a model of type None is not supported"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"is quantised \(awq\).* full-precision model"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised \(gptq\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"is quantised \(bitsandbytes\)"),
        ({"video_token_id": "many"}, "config.json of .* cannot be used: .*video_token_id"),
    ],
)
def test_models_that_cannot_be_used_are_refused_by_name(folder, changes, message):
    edit(folder / "config.json", **changes)
    for read in (load_model, lambda path: Processor.from_folder(path, FRAMES)):
        with pytest.raises(ValueError, match=message):
            read(str(folder))


def test_an_adapter_beside_a_model_is_refused(folder):
    """transformers would add it to the weights, again if they are merged."""
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}))
    with pytest.raises(ValueError, match="an adapter .* of 'Qwen/Qwen2.5-VL-7B-Instruct': merge it"):
        load_model(str(folder))


def test_a_tokenizer_that_cannot_end_a_turn_is_refused(folder):
    config = content(folder / "tokenizer_config.json")
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no token that ends a turn .eos_token in tokenizer_config.json"):
        Processor.from_folder(folder, FRAMES)
