"""Every family, on random weights in its own format: our forward against the plain Hugging Face one."""

from __future__ import annotations

import pytest
import torch

from experiments.bench.peers import generate
from tests.backbones.families import SETTINGS, write_family
from tests.policy.builders import (
    TEXT_ALONE,
    make_policy,
    mixed_prompts,
    ragged_prompts,
    random_groups,
    sampled_groups,
    whole_batch,
)
from tests.policy.test_attention import CASES, assert_same_learner
from tests.rollout.builders import sampler
from vidbridge.backbones import FAMILIES, backbone_of
from vidbridge.config.choices import Dtype
from vidbridge.config.schema import ModelConfig
from vidbridge.memory_plan.memory import Groups, Memory, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.policy.model_folder import read_config
from vidbridge.rollout.decode_step import prefill


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def policy(folder):
    return make_policy(folder, temperature=0.7)


@pytest.fixture(scope="module")
def plain(folder, policy):
    model_class = backbone_of(policy.module.config.model_type).model_class
    return model_class.from_pretrained(folder)


def test_there_is_a_folder_of_each_family():
    assert set(SETTINGS) == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_a_shared_prompt_gives_the_same_log_probabilities_loss_and_gradients(policy, plain, case):
    assert_same_learner(policy, plain, random_groups(policy, CASES[case]))


def test_text_alone(policy, plain):
    assert_same_learner(policy, plain, random_groups(policy, [[4, 7], [2, 3]], [TEXT_ALONE]))


def test_text_images_and_videos_in_one_batch(policy, plain):
    groups = random_groups(policy, [[4, 7], [2, 3, 5], [6, 1], [5], [3, 8], [4, 4]], mixed_prompts())
    assert_same_learner(policy, plain, groups)
    assert_same_learner(policy, plain, groups[1:3])  # images alone


def test_with_gradient_checkpointing(folder, plain):
    checkpointed = make_policy(folder, temperature=0.7, gradient_checkpointing=True)
    assert_same_learner(checkpointed, plain, random_groups(checkpointed, CASES["several groups"]))


def test_greedy_equals_generate_token_for_token(policy, plain):
    encoded = [policy.processor.encode(prompt) for prompt in (*ragged_prompts(), *mixed_prompts()[2::2])]  # images too
    rollout = sampler(policy, max_completion_tokens=40, temperature=0.7)
    completions = rollout.generate(encoded, 1, seed=0, greedy=True)
    for prompt, (completion,) in zip(encoded, completions, strict=True):
        options = {"do_sample": False, "max_new_tokens": 40, "suppress_tokens": policy.suppressed_ids.tolist()}
        assert list(completion.token_ids) == generate(plain, prompt, num_return_sequences=1, **options)[0].tolist()


def test_the_sampler_reports_the_learners_log_probabilities(policy):
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    rollout = sampler(policy, max_completion_tokens=16, temperature=0.7)
    completions = rollout.generate(encoded, 4, seed=1)
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    learner = policy.logprobs(batch)[0].detach()
    rows = [completion for group in completions for completion in group]
    for row, logprobs, mask in zip(rows, learner, batch.loss_mask, strict=True):
        torch.testing.assert_close(torch.tensor(row.sampler_logprobs), logprobs[mask], atol=1e-4, rtol=0)
        assert not set(row.token_ids) & set(policy.suppressed_ids.tolist())


def test_the_plan_counts_what_a_forward_pass_saves(folder, policy, tmp_path):
    """Wide enough that what the arithmetic leaves out is small."""
    model_type = policy.module.config.model_type
    wide = write_family(
        model_type,
        tmp_path,
        text={"hidden_size": 128, "num_attention_heads": 16, "intermediate_size": 256, "moe_intermediate_size": 128},
        vision={"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "num_heads": 4},
    )
    policy = make_policy(wide)
    (group,) = random_groups(policy, [[30] * 6])
    batch = whole_batch(policy, [group])
    known = {tensor.untyped_storage().data_ptr() for tensor in (*policy.module.parameters(), batch.pixel_values)}
    saved = {}  # by storage: views of one count once; kept, so that no address is used again

    def keep(tensor):
        if (address := tensor.untyped_storage().data_ptr()) not in known:
            saved.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(batch)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    model = ModelSize.of(read_config(str(wide)), ModelConfig(name="", path="", dtype=Dtype.float32))
    memory = Memory(model=model, sharding=Sharding(), on_gpu=False)
    row = Groups(
        number=1,
        siblings=6,
        prompt_tokens=len(group.encoded.input_ids),
        completion_tokens=30,
        patches=len(group.encoded.pixel_values),
    )
    assert row.tokens == len(batch.input_ids)
    assert memory._saved_text(row) + memory._saved_vision(row) == pytest.approx(counted, rel=0.1)
    cache, _ = prefill(policy.module, [group.encoded], 6, pad_id=policy.processor.pad_id)
    assert sum(each.nbytes for state in cache.states.values() for each in state) == 6 * model.state
    assert sum(each.nbytes for pair in cache.prompts.values() for each in pair) == (
        2 * 4 * model.attending * model.key_width * row.prompt_tokens
    )


@pytest.mark.parametrize("wrong", ["left out", "a layer late"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_features_that_are_not_added_where_they_belong_are_noticed(tmp_path, monkeypatch, family, wrong):
    policy = make_policy(write_family(family, tmp_path))
    plain = backbone_of(family).model_class.from_pretrained(tmp_path)
    groups, backbone = random_groups(policy, CASES["one group"]), type(backbone_of(family))
    for_layers = backbone.for_layers

    def changed(self, seen, is_video):
        told = dict(for_layers(self, seen, is_video))
        features = told["deepstack_visual_embeds"]
        told["deepstack_visual_embeds"] = [torch.zeros_like(features[0]), *features[:-1]]
        return {} if wrong == "left out" else told

    assert_same_learner(policy, plain, groups)
    monkeypatch.setattr(backbone, "for_layers", changed)
    with pytest.raises(AssertionError):
        assert_same_learner(policy, plain, groups)
