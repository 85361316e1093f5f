"""Mixtures of experts: the loss that spreads tokens over them, and whether sampler and learner choose the same."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from tests.backbones.families import write_family
from tests.composing import config_of, small_run
from tests.policy.builders import make_policy, ragged_prompts, random_groups, sampled_groups, whole_batch
from tests.rollout.builders import sampler
from vidbridge.backbones import backbone_of
from vidbridge.backbones.routers import Routing, balance_loss, expert_load, recorded
from vidbridge.build.train import build_learner
from vidbridge.check_model.routing import experts_alike
from vidbridge.config.schema import GrpoConfig
from vidbridge.errors import ConfigError

COEF = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_family("qwen3_vl_moe", tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def policy(folder):
    return make_policy(folder)


def routers_of(policy):
    return backbone_of(policy.module.config.model_type).routers(policy.module)


def test_the_balance_loss_and_the_load_by_hand():
    """Two layers of three tokens, four experts, one a token, with probabilities 0.7 and three times 0.1.

    Layer 1 sends all to expert 0, layer 2 one each to 0, 1, 2. Chosen, a token: 4, 1, 1, 0 of 6. Probability of 0: (4 *
    0.7 + 2 * 0.1) / 6 = 0.5, of 1 and of 2: (0.7 + 5 * 0.1) / 6 = 0.2, of 3: 0.1. 4 * (4 * 0.5 + 2 * 0.2) / 6 = 1.6.
    """
    layers = [torch.tensor([[0], [0], [0]]), torch.tensor([[0], [1], [2]])]
    routings = [Routing((0.1 + 0.6 * torch.eye(4)[chosen[:, 0]]).log(), chosen) for chosen in layers]
    assert balance_loss(routings).item() == pytest.approx(1.6)
    assert expert_load(routings) == 4 and expert_load(routings[1:]).item() == pytest.approx(4 / 3)
    even = [Routing(torch.zeros(2, 4), torch.tensor([[0, 1], [2, 3]]))]
    assert balance_loss(even).item() == pytest.approx(2) and expert_load(even) == 1  # two experts a token


def test_it_is_the_familys_own_over_the_packed_row(policy):
    """Each prompt's tokens once: 2 groups of 3 completions."""
    batch = whole_batch(policy, random_groups(policy, [[4, 6, 2], [3, 5, 5]]))
    with recorded(routers_of(policy)) as routings:
        policy.forward(batch)
    assert [len(routing.logits) for routing in routings] == [len(batch.input_ids)] * 4
    theirs = load_balancing_loss_func(tuple(routing.logits for routing in routings), 8, 2)
    assert balance_loss(routings).item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_the_sum_of_both(folder, checkpointing):
    policy = make_policy(folder, gradient_checkpointing=checkpointing)
    batch = whole_batch(policy, random_groups(policy, [[4, 6, 2]]))
    policy.router_aux_coef = COEF
    (weighted,) = policy.with_router_weights([batch])
    assert weighted.router_weight == COEF

    def gradients(of):
        policy.module.zero_grad()
        of(policy.forward(weighted)).backward()
        weights = policy.module.named_parameters()
        return {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}

    answers = gradients(lambda outputs: outputs.logprobs.sum())
    balance = gradients(lambda outputs: outputs.router_loss)
    both = gradients(lambda outputs: outputs.logprobs.sum() + outputs.router_loss)
    with recorded(routers_of(policy)) as routings:
        outputs = policy.forward(weighted)
    assert outputs.router_loss.item() == pytest.approx(COEF * balance_loss(routings).item())
    for name in balance:
        torch.testing.assert_close(both[name], answers[name] + balance[name], rtol=1e-4, atol=1e-5)
    router = "model.language_model.layers.0.mlp.gate.weight"
    assert balance[router].norm() > 1e-3 * answers[router].norm() > 0


def test_parts_weigh_what_they_have_of_the_tokens(policy, monkeypatch):
    """With the other rank's 1000 tokens; a part from which nothing is learnt has no weight, nor has any without the
    option."""
    groups = random_groups(policy, [[4, 6], [3, 5], [2, 2]])
    batches = policy.micro_batches(groups, torch.ones(6), torch.ones(6, 64))
    parts = [policy.collate([group], torch.ones(2), torch.ones(2, 64)) for group in groups]
    monkeypatch.setattr("vidbridge.runtime.collectives.all_gather", lambda tokens: [tokens, 1000])
    assert [each.router_weight for each in policy.with_router_weights(batches)] == [0.0]
    monkeypatch.setattr(policy, "router_aux_coef", COEF)
    parts[2].loss_mask.zero_()
    one, two, _ = (len(part.input_ids) for part in parts)
    weights = [part.router_weight for part in policy.with_router_weights(parts)]
    assert weights == pytest.approx([COEF * one / (one + two + 1000), COEF * two / (one + two + 1000), 0])


def test_sampler_and_learner_choose_the_same_experts(policy, monkeypatch):
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    completions = sampler(policy, max_completion_tokens=12).generate(encoded, 3, seed=0)
    groups = sampled_groups(ragged_prompts(), encoded, completions)
    assert experts_alike(policy, groups) == 1.0
    next_hidden = type(backbone_of("qwen3_vl_moe")).next_hidden
    monkeypatch.setattr(
        type(backbone_of("qwen3_vl_moe")), "next_hidden", lambda self, module, ids, positions, attention: next_hidden(
            self, module, ids, positions + 1, attention
        )
    )  # fmt: skip
    assert 0.5 < experts_alike(policy, groups) < 1.0


def test_a_dense_model_is_refused(random_qwen_folder, tmp_path):
    config = config_of(*small_run(random_qwen_folder, tmp_path), "algo.router_aux_coef=0.1")
    with pytest.raises(ConfigError, match="router_aux_coef=0.1: qwen2_5_vl has no router"):
        build_learner(config, None, steps=1)
    with pytest.raises(ConfigError, match="router_aux_coef must not be negative, got -1"):
        GrpoConfig(router_aux_coef=-1)


def test_a_dense_model_has_nothing_to_say(random_qwen_folder):
    policy = make_policy(random_qwen_folder)
    outputs = policy.forward(whole_batch(policy, random_groups(policy, [[3, 2]])))
    assert outputs.router_loss == outputs.expert_load == 0
    assert experts_alike(policy, []) is None
