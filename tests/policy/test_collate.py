"""What the learner is handed beside the tensors of the model."""

import dataclasses

import pytest
import torch

from tests.policy.builders import make_policy, ragged_groups, whole_batch


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder)


def with_first(groups, **changes):
    """The same groups, the first completion changed."""
    first, *others = groups[0].completions
    completions = (dataclasses.replace(first, **changes), *others)
    return [dataclasses.replace(groups[0], completions=completions), *groups[1:]]


def test_a_completion_with_a_suppressed_token_is_refused_by_name(policy):
    groups = ragged_groups(policy)
    pad_id = policy.processor.pad_id
    assert pad_id in policy.suppressed_ids
    ids = groups[0].completions[0].token_ids
    with pytest.raises(AssertionError, match=rf"never sampled: \[{pad_id}\]"):
        whole_batch(policy, with_first(groups, token_ids=(pad_id, *ids)))


def test_what_the_sampler_reported_is_padded_with_zeros(policy):
    groups = ragged_groups(policy)
    assert whole_batch(policy, groups).sampler_logprobs is None  # given completions, nobody sampled them
    assert whole_batch(policy, with_first(groups, sampler_logprobs=(-0.5,))).sampler_logprobs is None
    reported = [
        dataclasses.replace(
            group,
            completions=tuple(
                dataclasses.replace(done, sampler_logprobs=tuple(-1.0 - place for place in range(len(done.token_ids))))
                for done in group.completions
            ),
        )
        for group in groups
    ]
    batch = whole_batch(policy, reported)
    places = torch.arange(batch.completion_ids.shape[1])
    expected = torch.where(batch.loss_mask, -1.0 - places, 0.0)
    assert torch.equal(batch.sampler_logprobs, expected)
