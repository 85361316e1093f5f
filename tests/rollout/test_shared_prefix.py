"""Sampling against Hugging Face generate, against the learner, and against itself in other batchings."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLForConditionalGeneration

from experiments.bench.peers import generate
from tests.policy.builders import make_policy, ragged_prompts, sampled_groups, whole_batch
from tests.rollout.builders import sampler
from vidbridge.policy.policy import Policy
from vidbridge.rollout.kv_cache import Decode, SharedPrefixCache
from vidbridge.rollout.sampling import StopStrings, draw, truncate, uniforms_of
from vidbridge.types import SamplingParams


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder, temperature=0.8)


@pytest.fixture(scope="module")
def encoded(policy):
    return [policy.processor.encode(prompt) for prompt in ragged_prompts()]


def make_rollout(policy, *, max_completion_tokens=16, max_rows=64):
    return sampler(
        policy, max_completion_tokens=max_completion_tokens, temperature=policy.temperature, max_rows=max_rows
    )


def test_greedy_equals_generate_token_for_token(policy, encoded, random_qwen_folder):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    completions = make_rollout(policy, max_completion_tokens=24).generate(encoded, 1, seed=0, greedy=True)
    for prompt, (completion,) in zip(encoded, completions):
        options = {"do_sample": False, "max_new_tokens": 24, "suppress_tokens": policy.suppressed_ids.tolist()}
        expected = generate(plain, prompt, num_return_sequences=1, **options)[0].tolist()
        assert list(completion.token_ids) == expected


def test_sampler_and_learner_logprobs_agree(policy, encoded):
    completions = make_rollout(policy).generate(encoded, 4, seed=1)
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    learner = policy.logprobs(batch)[0].detach()
    rows = [completion for group in completions for completion in group]
    assert len(rows) == 12
    for row, logprobs, mask in zip(rows, learner, batch.loss_mask):
        torch.testing.assert_close(torch.tensor(row.sampler_logprobs), logprobs[mask], atol=1e-4, rtol=0)


class LowRank(torch.nn.Module):
    """As an adapter wraps a layer: ``weight`` is that of the layer inside, what is added stands beside it."""

    def __init__(self, layer, seed):
        super().__init__()
        self.layer = layer
        generator = torch.Generator().manual_seed(seed)
        self.down = 0.5 * torch.randn(2, layer.in_features, generator=generator)
        self.up = 0.5 * torch.randn(layer.out_features, 2, generator=generator)
        self.weight, self.bias = layer.weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, rows):
        return self.layer(rows) + rows @ self.down.T @ self.up.T


def wrap(module):
    for layer in module.model.language_model.layers:
        layer.mlp.up_proj = LowRank(layer.mlp.up_proj, seed=1)  # wide: multiplied by its weight where it is plain
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj, seed=2)


def hook(module):
    """Adapters that are no modules change what a layer gives by a hook."""
    for layer in module.model.language_model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda layer, inputs, output: 1.5 * output)
        layer.input_layernorm.register_forward_hook(lambda layer, inputs, output: 1.5 * output)


@pytest.mark.parametrize("adapt", [wrap, hook])
def test_sampling_follows_an_adapter(random_qwen_folder, adapt):
    """The sampler's layers are written out; one that reads a weight where the learner calls the layer would part."""
    policy = make_policy(random_qwen_folder)
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    plain = make_rollout(policy).generate(encoded, 2, seed=1)
    adapt(policy.module)
    completions = make_rollout(policy).generate(encoded, 2, seed=1)
    assert completions != plain
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    learner = policy.logprobs(batch)[0].detach()
    rows = [completion for group in completions for completion in group]
    for row, logprobs, mask in zip(rows, learner, batch.loss_mask, strict=True):
        torch.testing.assert_close(torch.tensor(row.sampler_logprobs), logprobs[mask], atol=1e-4, rtol=0)


def test_an_adapter_around_lm_head_is_refused(random_qwen_folder):
    """The learner multiplies by its weight, chunk by chunk."""
    policy = make_policy(random_qwen_folder)
    policy.module.lm_head = LowRank(policy.module.lm_head, seed=3)
    with pytest.raises(ValueError, match="lm_head is a LowRank"):
        Policy(policy.module, policy.processor)


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
    places = [5, 7, 6]
    together = rollout.generate(encoded, 2, seed=6, indices=places)
    apart = [rollout.generate([prompt], 2, seed=6, indices=[at])[0] for prompt, at in zip(encoded, places, strict=True)]
    assert [[c.token_ids for c in group] for group in together] == [[c.token_ids for c in group] for group in apart]


def test_a_prompt_is_told_as_soon_as_its_last_completion_has_ended(policy, encoded):
    """Steps of decoding are counted by the shares that are reported: the n-th is n / 40."""
    places, shares, told = [5, 7, 6], [], {}

    def ended(place, completions):
        assert place not in told
        told[place] = completions, round(40 * shares[-1])

    rollout = make_rollout(policy, max_completion_tokens=40)
    groups = rollout.generate(encoded, 1, seed=5, indices=places, ended=ended, progress=shares.append)
    lengths = [max(len(done.token_ids) for done in group) for group in groups]
    assert [told[place] for place in places] == list(zip(groups, lengths))
    assert len(set(lengths)) > 1


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


@given(
    weights=st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.95),
)
def test_truncation_keeps_the_likeliest_and_no_more_than_it_must(weights, top_p, min_p):
    probabilities = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    by_p = truncate(probabilities.log(), top_p=top_p, min_p=0.0).exp()[0]
    kept = by_p[by_p > 0]
    assert by_p.max() == pytest.approx(probabilities.max())
    assert kept.sum() >= top_p - 1e-9 or len(kept) == (probabilities > 0).sum()
    assert kept.sum() - kept.min() < top_p + 1e-9 or len(kept) == 1  # without the least likely it would not be enough
    by_min = truncate(probabilities.log(), top_p=1.0, min_p=min_p).exp()[0]
    for before, after in zip(probabilities[0], by_min):
        if abs(before - min_p * probabilities.max()) > 1e-9:
            assert after == pytest.approx(before if before >= min_p * probabilities.max() else 0.0)


def test_sampling_equals_generate_in_distribution(policy, encoded, random_qwen_folder):
    """Two samples of 3-token beginnings, ours and generate's: chi-square of the common ones."""
    number, prompt = 4000, encoded[2]
    (ours,) = make_rollout(policy, max_completion_tokens=3, max_rows=number).generate([prompt], number, seed=9)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    torch.manual_seed(0)
    theirs = generate(
        plain,
        prompt,
        num_return_sequences=number,
        do_sample=True,
        temperature=policy.temperature,
        top_k=0,
        max_new_tokens=3,
        suppress_tokens=policy.suppressed_ids.tolist(),
    )
    eos_id = policy.processor.eos_id
    counts = [
        Counter(done.token_ids for done in ours),
        Counter(tuple(row[: row.index(eos_id) + 1] if eos_id in row else row) for row in theirs.tolist()),
    ]
    common = [beginning for beginning, count in (counts[0] + counts[1]).items() if count >= 20]
    table = torch.tensor([[count[beginning] for beginning in common] for count in counts], dtype=torch.float64)
    table = torch.cat([table, number - table.sum(dim=1, keepdim=True)], dim=1)  # all others together
    expected = table.sum(dim=0) / 2
    chi_square = ((table - expected) ** 2 / expected).sum().item()
    degrees = table.shape[1] - 1
    assert degrees > 30
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5  # mean and deviation of chi-square


def test_rows_that_have_ended_leave_and_change_nothing(policy, encoded, monkeypatch):
    kept = []
    keep = SharedPrefixCache.keep
    monkeypatch.setattr(SharedPrefixCache, "keep", lambda cache, *args: kept.append(args) or keep(cache, *args))
    rollout = make_rollout(policy, max_completion_tokens=40)
    leaving = rollout.generate(encoded, 8, seed=7)
    assert kept
    monkeypatch.setattr("vidbridge.rollout.shared_prefix._WORTH_LEAVING", 0.0)
    kept.clear()
    staying = rollout.generate(encoded, 8, seed=7)
    assert not kept
    for one, other in zip([c for g in leaving for c in g], [c for g in staying for c in g], strict=True):
        assert (one.token_ids, one.text, one.finished) == (other.token_ids, other.text, other.finished)
        assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-4)


def test_room_grows_with_the_completions(policy, encoded, monkeypatch):
    """More tokens than the first piece of room holds: the same as with room for all from the start."""
    rollout = make_rollout(policy, max_completion_tokens=40)
    wide = rollout.generate(encoded, 2, seed=5)
    monkeypatch.setattr("vidbridge.rollout.kv_cache.FIRST_COLUMNS", 3)
    narrow = rollout.generate(encoded, 2, seed=5)
    assert [[c.token_ids for c in group] for group in wide] == [[c.token_ids for c in group] for group in narrow]


def test_a_stop_string_ends_a_completion(policy, encoded):
    """The same random numbers with and without: cut after the token that completes the string, which stays."""
    options = {"max_completion_tokens": 30, "temperature": policy.temperature}
    free = sampler(policy, **options).generate(encoded, 16, seed=8)
    cut = sampler(policy, stop=("grows", "</answer>"), **options).generate(encoded, 16, seed=8)
    num_stopped = 0
    for one, other in zip([c for g in free for c in g], [c for g in cut for c in g], strict=True):
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        stops = [one.text.find(word) + len(word) for word in ("grows", "</answer>") if word in one.text]
        if stops:
            num_stopped += 1
            assert other.text == one.text[: min(stops)] and other.finished
            assert policy.processor.eos_id not in other.token_ids
        else:
            assert other.token_ids == one.token_ids
    assert num_stopped > 5


def byte_level_tokenizer():
    """Like the real one: tokens are bytes, not characters; without merges every byte is a token."""
    vocabulary = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("stop", ["</answer>", "\u3002", "\u7b54\u6848", "e"])
def test_a_stop_string_of_many_tokens_and_bytes_is_found_when_it_is_whole(stop):
    tokenizer = byte_level_tokenizer()
    stops = StopStrings([stop], tokenizer.decode)
    ids = tokenizer.encode(f"t\u7b54 x<answ{stop} more").ids
    ends = [bool(stops(torch.tensor([ids[:length]]))[0]) for length in range(1, len(ids) + 1)]
    whole = len(tokenizer.encode(f"t\u7b54 x<answ{stop}").ids)
    assert ends.index(True) == whole - 1


def test_top_p_and_min_p_leave_what_they_should_and_report_what_was_drawn_from(policy, encoded):
    """With next to nothing left, sampling is greedy, token for token, and every token was certain."""
    options = {"max_completion_tokens": 12, "temperature": policy.temperature}
    greedy = sampler(policy, **options).generate(encoded, 2, seed=0, greedy=True)
    for narrow in ({"top_p": 1e-6}, {"min_p": 0.9999}):
        sampled = sampler(policy, **options, **narrow).generate(encoded, 2, seed=0)
        assert [[row.token_ids for row in group] for group in sampled] == [
            [row.token_ids for row in group] for group in greedy
        ]
        assert {value for group in sampled for row in group for value in row.sampler_logprobs} == {0.0}
    wide = sampler(policy, **options).generate(encoded, 8, seed=0)
    cut = sampler(policy, top_p=0.5, **options).generate(encoded, 8, seed=0)
    assert cut != wide
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, cut))
    # to the learner a token is as likely as to the sampler, times what the tokens that were left have together
    kept = (policy.logprobs(batch)[0].detach() - batch.sampler_logprobs).exp()[batch.loss_mask]
    assert 0.5 - 1e-4 < kept.min() < 0.8 and kept.max() < 1 + 1e-4


def test_decoding_in_16_bits_is_as_exact_as_the_inputs():
    """Large scores, as the key biases of Qwen give them, must not be rounded to 16 bits before the softmax."""
    torch.manual_seed(0)
    cache = SharedPrefixCache(torch.ones(1, 40, dtype=torch.bool), width=2)
    query = 8 * torch.randn(2, 4, 1, 16)
    key, value = torch.randn(1, 2, 40, 16) + 4, torch.randn(1, 2, 40, 16)
    new_key, new_value = (torch.randn(2, 2, 1, 16) for _ in range(2))
    halves = [tensor.bfloat16() for tensor in (query, key, value, new_key, new_value)]
    query, key, value, new_key, new_value = halves
    cache.prompts[0] = key, value
    cache.reserve(1)
    got = Decode(cache, torch.tensor([0]), visible=1).attend(0, query, new_key, new_value, 0.25)
    keys = torch.cat([key.expand(2, -1, -1, -1), new_key], dim=2).float().repeat_interleave(2, dim=1)
    values = torch.cat([value.expand(2, -1, -1, -1), new_value], dim=2).float().repeat_interleave(2, dim=1)
    want = ((query.float() @ keys.mT * 0.25).softmax(dim=-1) @ values).transpose(1, 2)
    assert ((got.float() - want).norm() / want.norm()).item() < 0.01  # a bfloat16 number has 2 to 3 digits


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"max_completion_tokens": 0}, "max_completion_tokens must be positive"),
        ({"stop": ("x", "")}, "every completion would end at once"),
        ({"min_p": 1.0}, r"min_p must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"max_completion_tokens": 4, **setting})
