"""Sampling against Hugging Face generate, against the learner, and against itself in other batchings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.policy.builders import make_policy, ragged_prompts, sampled_groups, whole_batch
from vidbridge.rollout.batched import BatchedRollout, draw, uniforms_of


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder, temperature=0.8)


@pytest.fixture(scope="module")
def encoded(policy):
    return [policy.processor.encode(prompt) for prompt in ragged_prompts()]


def make_rollout(policy, *, max_completion_tokens=16, max_rows=64):
    return BatchedRollout(
        policy, max_completion_tokens=max_completion_tokens, temperature=policy.temperature, max_rows=max_rows
    )


def test_greedy_equals_generate_token_for_token(policy, encoded, random_qwen_folder):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    seconds = [[1.0], [1.0, 2.0], [1.0]]  # of one temporal patch: 2 frames at 2 fps, the fifth video at 1 fps
    completions = make_rollout(policy, max_completion_tokens=24).generate(encoded, 1, seed=0, greedy=True)
    for prompt, second_per_grid_ts, (completion,) in zip(encoded, seconds, completions):
        ids = prompt.input_ids[None]
        expected = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=prompt.pixel_values,
            video_grid_thw=prompt.video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            mm_token_type_ids=(ids == plain.config.video_token_id).long() * 2,
            suppress_tokens=policy.suppressed_ids.tolist(),
            do_sample=False,
            max_new_tokens=24,
        )[0, ids.shape[1] :].tolist()
        assert list(completion.token_ids) == expected


def test_sampler_and_learner_logprobs_agree(policy, encoded):
    completions = make_rollout(policy).generate(encoded, 4, seed=1)
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    learner = policy.logprobs(batch)[0].detach()
    rows = [completion for group in completions for completion in group]
    assert len(rows) == 12
    for row, logprobs, mask in zip(rows, learner, batch.loss_mask):
        torch.testing.assert_close(torch.tensor(row.sampler_logprobs), logprobs[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("greedy", [True, False])
def test_chunking_changes_nothing(policy, encoded, greedy):
    """max_rows=2 decodes one prompt at a time, unpadded; max_rows=64 all three together, padded."""
    together = make_rollout(policy).generate(encoded, 2, seed=2, greedy=greedy)
    apart = make_rollout(policy, max_rows=2).generate(encoded, 2, seed=2, greedy=greedy)
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in apart]


def test_the_seed_decides(policy, encoded):
    rollout = make_rollout(policy)
    torch.manual_seed(123)
    first = rollout.generate(encoded, 3, seed=3)
    torch.manual_seed(456)
    assert rollout.generate(encoded, 3, seed=3) == first
    assert rollout.generate(encoded, 3, seed=4) != first


def test_prompts_in_calls_of_their_own_draw_the_same_numbers(policy, encoded):
    rollout = make_rollout(policy)
    together = rollout.generate(encoded, 2, seed=6, first=5)
    apart = [rollout.generate([prompt], 2, seed=6, first=5 + place)[0] for place, prompt in enumerate(encoded)]
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in apart]


def test_no_two_prompts_draw_the_same_numbers():
    numbers = uniforms_of(3, range(4), 2, 5)
    assert numbers.shape == (8, 5) and len(set(numbers.flatten().tolist())) == 40
    assert not set(numbers.flatten().tolist()) & set(uniforms_of(4, range(4), 2, 5).flatten().tolist())


def test_completions_are_cut_after_eos_and_hold_no_suppressed_token(policy, encoded):
    shares = []
    rollout = make_rollout(policy, max_completion_tokens=40)
    completions = [c for group in rollout.generate(encoded, 16, seed=5, progress=shares.append) for c in group]
    eos_id, suppressed = policy.processor.eos_id, set(policy.suppressed_ids.tolist())
    assert any(c.finished for c in completions)
    for completion in completions:
        assert (eos_id in completion.token_ids) == completion.finished
        assert eos_id not in completion.token_ids[:-1]
        assert completion.finished or len(completion.token_ids) == 40
        assert not suppressed & set(completion.token_ids)
        assert len(completion.sampler_logprobs) == len(completion.token_ids)
        assert completion.text == policy.processor.decode(completion.token_ids) and "<|im_end|>" not in completion.text
    assert shares == sorted(shares) and shares[-1] == 1.0


@given(uniform=st.floats(0, 1, exclude_max=True), weights=st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_draw_never_returns_a_token_of_probability_zero(uniform, weights):
    if sum(weights) == 0:
        weights[-1] = 1
    probabilities = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    token = int(draw(probabilities.log(), torch.tensor([uniform], dtype=torch.float64)))
    assert weights[token] > 0


def test_draw_inverts_the_cumulative_distribution():
    """Probabilities .25 0 .5 .25 -> cumulative .25 .25 .75 1."""
    logprobs = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 0.999], dtype=torch.float64)
    assert draw(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_bad_settings_are_refused(policy):
    with pytest.raises(ValueError, match="temperature must be > 0"):
        BatchedRollout(policy, max_completion_tokens=4, temperature=0.0)
