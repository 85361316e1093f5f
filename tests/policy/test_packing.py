"""The packed row by hand, and what the learner is handed beside it."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import make_group, make_policy, ragged_groups, ragged_prompts, whole_batch
from vidbridge.policy.packing import fill_rows, loss_mask, packed_tokens
from vidbridge.types import RewardBreakdown


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder)


def test_the_packed_row_by_hand(policy):
    """Prompts of L1 and L2 tokens; completions "A <eos>", "it is <eos>", "<eos>": the last token takes no place."""
    prompts = ragged_prompts()
    groups = [make_group(policy, prompts[0], ["A", "it is"]), make_group(policy, prompts[2], [""])]
    first, second = (group.encoded for group in groups)
    one, two = len(first.input_ids), len(second.input_ids)
    a, it, space, is_ = (policy.processor.tokenizer.convert_tokens_to_ids(word) for word in ("A", "it", " ", "is"))
    eos = policy.processor.eos_id
    batch = whole_batch(policy, groups)
    assert batch.input_ids.tolist() == [*first.input_ids, a, it, space, is_, *second.input_ids]
    assert batch.group_ids.tolist() == [0] * (one + 4) + [1] * two
    assert batch.sibling_ids.tolist() == [0] * one + [1, 2, 2, 2] + [0] * two
    start = one + first.rope_delta
    assert batch.position_ids[:, :one].equal(first.position_ids)
    assert batch.position_ids[:, one : one + 4].tolist() == [[start, start, start + 1, start + 2]] * 3
    assert batch.position_ids[:, one + 4 :].equal(second.position_ids)
    assert batch.completion_ids.tolist() == [[a, eos, 0, 0], [it, space, is_, eos], [eos, 0, 0, 0]]
    assert batch.predictors.tolist() == [
        [one - 1, one, 0, 0], [one - 1, one + 1, one + 2, one + 3], [one + 4 + two - 1, 0, 0, 0]
    ]  # fmt: skip
    assert batch.sampled_mask.sum(dim=1).tolist() == [2, 4, 1]
    assert sum(map(packed_tokens, groups)) == len(batch.input_ids)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), budget=st.integers(1, 100))
def test_rows_hold_every_group_once_within_the_budget(lengths, budget):
    rows = fill_rows(lengths, budget)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= budget
    assert lengths[rows[0][0]] == max(lengths)
    # no two rows that would fit into one
    totals = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_rows_of_an_unscored_group_are_kept_but_masked(policy):
    prompt = ragged_prompts()[0]
    groups = [make_group(policy, prompt, ["A", "it"]), make_group(policy, prompt, ["B", "is"], scored=False)]
    assert loss_mask(groups).tolist() == [[True, True], [True, True], [False, False], [False, False]]  # word, EOS
    batch = whole_batch(policy, groups)
    assert torch.equal(batch.loss_mask, loss_mask(groups)) and batch.sampled_mask.all()


def test_a_completion_without_a_score_is_masked_alone(policy):
    group = make_group(policy, ragged_prompts()[0], ["A", "it", "B"])
    totals = (1.0, float("nan"), 0.0)
    rewards = tuple(RewardBreakdown(total=total, terms={"it": total}, gates={}) for total in totals)
    group = dataclasses.replace(group, rewards=rewards)
    assert group.scored == (True, False, True)
    batch = whole_batch(policy, [group])
    assert batch.loss_mask.any(dim=1).tolist() == [True, False, True] and batch.sampled_mask.all()


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
