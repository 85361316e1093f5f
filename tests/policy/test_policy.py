"""The learner's forward against the plain Hugging Face call, batching identities, and the saved form."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tests.policy.builders import make_policy, ragged_groups, whole_batch
from vidbridge.policy.packing import packed_tokens
from vidbridge.policy.policy import frozen_copy, model_card


@pytest.fixture(scope="module")
def policy(random_qwen_folder):
    return make_policy(random_qwen_folder, temperature=0.7)


def row_logprobs(policy, batch):
    """Log-probabilities of each row's own tokens, without its padding."""
    logprobs, _ = policy.logprobs(batch)
    return [row[mask] for row, mask in zip(logprobs, batch.loss_mask)]


def test_logprobs_equal_one_plain_model_call_per_completion(policy, random_qwen_folder):
    """The reference: the untouched class from the same folder, called with ids, pixels and positions only."""
    groups = ragged_groups(policy)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_qwen_folder)
    rows = row_logprobs(policy, whole_batch(policy, groups))
    assert len(rows) == 6
    for index, row in enumerate(rows):
        encoded = groups[index // 2].encoded
        completion = torch.tensor(groups[index // 2].completions[index % 2].token_ids)
        ids = torch.cat([encoded.input_ids, completion])[None]
        after = len(encoded.input_ids) + encoded.rope_delta + torch.arange(len(completion))
        with torch.no_grad():
            logits = plain(
                input_ids=ids,
                pixel_values_videos=encoded.pixel_values,
                video_grid_thw=encoded.grid_thw,
                position_ids=torch.cat([encoded.position_ids, after.expand(3, -1)], dim=1)[:, None],
            ).logits[0, -len(completion) - 1 : -1]
        logits[:, policy.suppressed_ids] = float("-inf")
        expected = torch.log_softmax(logits / 0.7, dim=-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def test_micro_batches_cover_every_row_once(policy):
    groups = ragged_groups(policy)
    lengths = [packed_tokens(group) for group in groups]
    assert lengths[1] > max(lengths[0], lengths[2])
    policy.max_packed_tokens = max(lengths[1], lengths[0] + lengths[2])
    weights = torch.arange(6.0)[:, None].expand(6, 64)
    parts = list(policy.micro_batches(groups, torch.arange(6.0), weights))
    order = [2, 3, 4, 5, 0, 1] if lengths[2] > lengths[0] else [2, 3, 0, 1, 4, 5]  # the longest first
    assert torch.cat([part.advantages for part in parts]).tolist() == order
    assert len(parts) == 2
    for part in parts:
        assert part.token_weights.shape == part.completion_ids.shape
        assert torch.equal(part.token_weights[:, 0], part.advantages)
    whole = row_logprobs(policy, whole_batch(policy, groups))
    for row, place in zip([row for part in parts for row in row_logprobs(policy, part)], order, strict=True):
        torch.testing.assert_close(row, whole[place], atol=1e-5, rtol=1e-5)


def test_micro_batch_gradients_add_up_to_the_whole(random_qwen_folder):
    policy = make_policy(random_qwen_folder, max_packed_tokens=1)
    groups = ragged_groups(policy)
    gradients = []
    parts = list(policy.micro_batches(groups, torch.ones(6), torch.ones(6, 64)))
    for batches in ([whole_batch(policy, groups)], parts):
        policy.module.zero_grad()
        for batch in batches:
            policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
        gradients.append([weight.grad.clone() for weight in policy.module.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_no_number(policy, random_qwen_folder):
    checkpointed = make_policy(random_qwen_folder, temperature=0.7, gradient_checkpointing=True)
    losses = []
    for each in (policy, checkpointed):
        each.module.zero_grad()
        batch = whole_batch(each, ragged_groups(each))
        loss = (each.logprobs(batch)[0] * batch.loss_mask).sum()
        loss.backward()
        losses.append((loss.item(), each.module.get_input_embeddings().weight.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    torch.testing.assert_close(losses[0][1], losses[1][1], atol=1e-4, rtol=1e-3)


def test_the_reference_stays_while_the_policy_moves(random_qwen_folder):
    policy = make_policy(random_qwen_folder)
    batch = whole_batch(policy, ragged_groups(policy))
    assert policy.ref_logprobs(batch) is None
    policy.reference = frozen_copy(policy.module)
    before = policy.logprobs(batch)[0].detach()
    torch.testing.assert_close(policy.ref_logprobs(batch), before)
    policy.backward(-(policy.logprobs(batch)[0] * batch.loss_mask).sum())
    policy.update()
    torch.testing.assert_close(policy.ref_logprobs(batch), before)
    assert not torch.allclose(policy.logprobs(batch)[0], before, atol=1e-3)


def test_save_then_load_gives_the_same_policy(random_qwen_folder, tmp_path):
    policy = make_policy(random_qwen_folder)
    groups = ragged_groups(policy)
    policy.backward(-policy.logprobs(whole_batch(policy, groups))[0].sum())
    assert policy.update()["policy/skipped_updates"] == 0
    policy.save(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "preprocessor_config.json", "README.md",
    }  # fmt: skip
    loaded = make_policy(tmp_path)
    for (name, weight), (other_name, other) in zip(
        policy.module.state_dict().items(), loaded.module.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(weight, other)
    batch = whole_batch(loaded, ragged_groups(loaded))
    assert torch.equal(loaded.logprobs(batch)[0], policy.logprobs(whole_batch(policy, groups))[0])
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(plain.lm_head.weight, policy.module.lm_head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.processor.tokenizer.chat_template


def test_the_card_says_where_the_model_comes_from(policy, random_qwen_folder):
    card = model_card(policy.module, ["grpo"], 1_450_000)
    assert "tags: [vidbridge, qwen2_5_vl, grpo]" in card
    assert f"`{random_qwen_folder.name}`" in card and str(random_qwen_folder.parent) not in card
    module = SimpleNamespace(
        name_or_path="Qwen/Qwen2.5-VL-7B-Instruct", named_parameters=list, config=policy.module.config
    )
    assert "`Qwen/Qwen2.5-VL-7B-Instruct`" in model_card(module, [], 8_000_000_000)
