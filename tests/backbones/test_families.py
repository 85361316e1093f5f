"""Every family, on random weights in its own format: our forward against the plain Hugging Face one."""

from __future__ import annotations

import pytest
import torch

from experiments.bench.peers import generate
from tests.backbones.families import SETTINGS, write_family
from tests.policy.builders import make_policy, ragged_prompts, random_groups, sampled_groups, whole_batch
from tests.policy.test_attention import CASES, assert_same_learner
from tests.rollout.builders import sampler
from vidbridge.backbones import FAMILIES, backbone_of


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
    assert_same_learner(policy, plain, random_groups(policy, [[4, 7], [2, 3]], text_only=True))


def test_with_gradient_checkpointing(folder, plain):
    checkpointed = make_policy(folder, temperature=0.7, gradient_checkpointing=True)
    assert_same_learner(checkpointed, plain, random_groups(checkpointed, CASES["several groups"]))


def test_greedy_equals_generate_token_for_token(policy, plain):
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
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
