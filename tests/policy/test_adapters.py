"""Adapters: the same function everywhere, gradients by hand, the base untouched, and folders that peft reads."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.backbones.families import write_family
from tests.policy.builders import make_policy, ragged_prompts, random_groups, sampled_groups, whole_batch
from tests.rollout.builders import sampler
from vidbridge.backbones import FAMILIES, backbone_of, layers
from vidbridge.errors import ConfigError
from vidbridge.policy.adapters import LoraConfig, adapted_layers, adapters_off, merged_weights
from vidbridge.policy.loading import load_model
from vidbridge.policy.plain import repeated_logprobs

BOTH = LoraConfig(rank=3, alpha=6.0, targets=["language_model", "visual"])
LENGTHS = [[5, 7], [6, 4]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_family(request.param, tmp_path_factory.mktemp(request.param))


def adapted_policy(folder, adapter=BOTH, **options):
    """With adapters that have learnt something: B is not 0."""
    policy = make_policy(folder, adapter=adapter, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in policy.module.named_parameters():
            if ".lora_B." in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


def logprobs_of(policy, groups):
    batch = whole_batch(policy, groups)
    return policy.logprobs(batch)[0], batch


def matrices(layer):
    """-> B, A, alpha / rank"""
    return layer.lora_B["default"].weight, layer.lora_A["default"].weight, layer.scaling["default"]


def merge_by_hand(policy, folder):
    """A policy without adapters whose weights are W + alpha / rank * B A."""
    other = make_policy(folder)
    with torch.no_grad():
        for name, layer in adapted_layers(policy.module).items():
            up, down, _ = matrices(layer)
            other.module.get_submodule(name).weight += BOTH.alpha / BOTH.rank * (up @ down)
    return other


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probabilities_and_gradients_are_those_of_merged_weights(folder, checkpointing):
    """With W' = W + s B A, the chain rule gives dL/dA = s B^T dL/dW' and dL/dB = s dL/dW' A^T."""
    policy = adapted_policy(folder, gradient_checkpointing=checkpointing)
    plain = merge_by_hand(policy, folder)
    groups = random_groups(policy, LENGTHS)
    (ours, batch), (wanted, _) = logprobs_of(policy, groups), logprobs_of(plain, groups)
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)) * batch.loss_mask
    for logprobs in (ours, wanted):
        (logprobs * pull).sum().backward()
    found = adapted_layers(policy.module)
    parts = {name.split(".")[1] for name in found}
    assert parts == {"language_model", "visual"}
    assert ("mlp" in "".join(name for name in found if "language_model" in name)) == ("moe" not in folder.name)
    for name, layer in found.items():
        up, down, scale = matrices(layer)
        whole = plain.module.get_submodule(name).weight.grad
        for gradient, by_hand in ((down.grad, scale * up.T @ whole), (up.grad, scale * whole @ down.T)):
            torch.testing.assert_close(gradient, by_hand, atol=1e-4, rtol=1e-3)
    others = [weight for name, weight in policy.module.named_parameters() if ".lora_" not in name]
    assert all(weight.grad is None and not weight.requires_grad for weight in others)


def gap(policy):
    """What the sampler says of the tokens that it drew against what the learner says of them."""
    encoded = [policy.processor.encode(prompt) for prompt in ragged_prompts()]
    completions = sampler(policy, max_completion_tokens=12, temperature=1.0).generate(encoded, 3, seed=1)
    batch = whole_batch(policy, sampled_groups(ragged_prompts(), encoded, completions))
    with torch.no_grad():
        learner = policy.logprobs(batch)[0][batch.loss_mask]
    sampled = [value for group in completions for row in group for value in row.sampler_logprobs]
    return (learner - torch.tensor(sampled)).abs().max().item()


def test_the_sampler_samples_with_the_adapters(folder, monkeypatch):
    """The prompt and every decoding step; a decoding step without them parts at once."""
    policy = adapted_policy(folder)
    assert gap(policy) < 1e-4
    family = type(backbone_of(policy.module.config.model_type))
    step = family.next_hidden

    def without(self, module, *rest):
        with adapters_off(module):
            return step(self, module, *rest)

    monkeypatch.setattr(family, "next_hidden", without)
    assert gap(policy) > 0.1


def test_a_step_that_reads_the_weights_of_a_layer_itself_is_noticed(random_qwen_folder, monkeypatch):
    policy = adapted_policy(random_qwen_folder)
    monkeypatch.setattr(layers, "_is_plain", lambda layer, kind: True)  # a peft layer has the frozen one's weight
    assert gap(policy) > 0.1


def test_the_reference_is_the_base_bit_for_bit_and_no_copy(folder):
    policy, base = adapted_policy(folder), make_policy(folder)
    policy.reference = policy.engine.whole()
    groups = random_groups(policy, LENGTHS)
    with torch.no_grad():
        (wanted, batch), (ours, _) = logprobs_of(base, groups), logprobs_of(policy, groups)
        assert torch.equal(policy.ref_logprobs(batch), wanted)
        assert (ours - wanted).abs().max() > 0.1
        assert torch.equal(logprobs_of(policy, groups)[0], ours)  # they are on again
    assert policy.reference is policy.module
    trained = {name for name, weight in policy.module.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in policy.module.named_parameters() if ".lora_" in name}


def test_new_adapters_change_nothing_and_are_drawn_by_the_seed(random_qwen_folder):
    def new(seed, drawn=0):
        torch.manual_seed(seed)
        torch.randn(drawn)
        return make_policy(random_qwen_folder, adapter=BOTH)

    policies = [make_policy(random_qwen_folder), new(0), new(0, drawn=7), new(1)]
    groups = random_groups(policies[0], LENGTHS)
    logprobs = [logprobs_of(policy, groups)[0] for policy in policies]
    assert all(torch.equal(each, logprobs[0]) for each in logprobs)
    first = [next(layer for layer in adapted_layers(policy.module).values()) for policy in policies[1:]]
    drawn = [matrices(layer)[1] for layer in first]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_peft_reads_the_saved_folder_and_so_do_we(folder, tmp_path):
    policy = adapted_policy(folder)
    policy.save(tmp_path)
    assert not (tmp_path / "config.json").exists() and not list(tmp_path.glob("model*"))
    plain = backbone_of(policy.module.config.model_type).model_class.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).base_model.model.eval()
    groups = random_groups(policy, LENGTHS)
    ours, batch = logprobs_of(policy, groups)
    asked = {"temperature": 1.0, "suppressed_ids": policy.suppressed_ids}
    wanted = repeated_logprobs(theirs, groups, **asked)
    torch.testing.assert_close(ours[batch.loss_mask], wanted[batch.loss_mask], atol=1e-4, rtol=0)
    again = make_policy(tmp_path)  # the base is where adapter_config.json says
    assert torch.equal(logprobs_of(again, groups)[0], ours)
    assert [weight.requires_grad for weight in again.module.parameters()] == [
        weight.requires_grad for weight in policy.module.parameters()
    ]
    assert "library_name: peft" in (card := (tmp_path / "README.md").read_text())
    assert "PeftModel.from_pretrained(" in card and str(folder.parent) not in card


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_merged_weights_are_a_model_of_their_own(folder, tmp_path, dtype):
    policy = adapted_policy(folder)
    policy.save_merged, policy.saved_dtype = True, dtype
    policy.save(tmp_path)
    names, base = (load_file(path / "model.safetensors") for path in (tmp_path, folder))
    assert {name: weight.shape for name, weight in names.items()} == {name: w.shape for name, w in base.items()}
    assert {weight.dtype for weight in names.values()} == {dtype or torch.float32}
    saved = backbone_of(policy.module.config.model_type).model_class.from_pretrained(tmp_path, dtype="auto")
    assert saved.dtype == (dtype or torch.float32)
    wanted = dict(merge_by_hand(policy, folder).module.named_parameters())
    for name, weight in saved.named_parameters():
        atol = 1e-6 if dtype is None else 0.02
        torch.testing.assert_close(weight.detach().float(), wanted[name].detach(), atol=atol, rtol=0)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json"}
    assert not (tmp_path / "adapter_config.json").exists()  # transformers would add them to the merged weights
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()


def test_a_tied_embedding_is_yielded_once_and_nothing_of_the_adapters(folder):
    policy = adapted_policy(folder)
    names = [name for name, _ in merged_weights(policy.module)]
    assert names == [name for name, _ in make_policy(folder).module.named_parameters()]


def test_a_checkpoint_holds_the_adapters_alone(random_qwen_folder, tmp_path):
    policy = adapted_policy(random_qwen_folder)
    groups = random_groups(policy, LENGTHS)
    logprobs, batch = logprobs_of(policy, groups)
    policy.backward(-(logprobs * batch.loss_mask).sum())
    policy.update()
    policy.engine.snapshot()(tmp_path)
    tensors = load_file(tmp_path / "engine.safetensors")
    assert all(".lora_" in name for name in tensors)
    sizes = [layer.in_features + layer.out_features for layer in adapted_layers(policy.module).values()]
    numbers = BOTH.rank * sum(sizes)  # A is rank x in, B is out x rank
    assert sum(t.numel() for name, t in tensors.items() if not name.startswith("step.")) == 3 * numbers
    other = make_policy(random_qwen_folder, adapter=BOTH)
    other.engine.load(tmp_path)
    assert torch.equal(logprobs_of(other, groups)[0], logprobs_of(policy, groups)[0])


def test_adapters_of_bfloat16_are_trained_in_32_bits(random_qwen_folder):
    policy = make_policy(random_qwen_folder, adapter=BOTH, dtype="bfloat16", lr=1e-7)
    logprobs, batch = logprobs_of(policy, random_groups(policy, LENGTHS))
    policy.backward(-(logprobs * batch.loss_mask).sum())
    before = [master.clone() for master in policy.engine.masters]
    policy.update()
    assert {weight.dtype for weight in policy.module.parameters()} == {torch.bfloat16}
    assert any(not torch.equal(master, old) for master, old in zip(policy.engine.masters, before))
    assert all(master.dtype == torch.float32 for master in policy.engine.masters)


def test_what_is_frozen_gets_no_adapter(random_qwen_folder):
    frozen = ["visual", "language_model.layers.0"]
    module = load_model(str(random_qwen_folder), device="cpu", adapter=BOTH, frozen=frozen)
    assert {name.rsplit(".", 2)[0] for name in adapted_layers(module)} == {"model.language_model.layers.1"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"targets": ["vision"]}, "model.adapter.targets: cannot adapt 'vision': .* it has language_model, lm_"),
        ({"targets": ["lm_head"]}, "'lm_head' can have no adapter: lm_head gives the logits"),
        ({"targets": ["language_model.embed_tokens"]}, "'language_model.embed_tokens' can have no adapter: there"),
        ({"targets": ["visual"]}, r"model.frozen=\['visual'\] leaves no layer of model.adapter.targets to adapt"),
    ],
)
def test_targets_that_cannot_be_are_named(random_qwen_folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        load_model(str(random_qwen_folder), device="cpu", adapter=LoraConfig(**wrong), frozen=["visual"])


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": -8}, {"alpha": 0.0}, {"targets": []}])
def test_bad_numbers_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"model.adapter.{next(iter(wrong))} must"):
        LoraConfig(**wrong)


@pytest.fixture
def saved(random_qwen_folder, tmp_path):
    adapted_policy(random_qwen_folder).save(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"base_model_name_or_path": "/nowhere"}, "adapter_config.json: base_model_name_or_path is '/nowhere': set it"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None: set it to where the model is"),
        ({"use_dora": True}, "adapts model.* in a way that is not supported: merge it first"),
        ({"modules_to_save": ["lm_head"]}, "is no plain LoRA: merge it into its model first"),
        ({"r": 5}, r"cannot read the adapters in .*: .*size mismatch for \S*lora_A.default.weight: [^\n\t]*$"),
        ({"target_modules": ["q_proj"]}, "do not fit their adapter_config.json: .* has no place in the model"),
    ],
)
def test_adapters_that_cannot_be_used_are_refused(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(str(saved), device="cpu")


def test_an_adapter_is_not_put_on_an_adapter(saved):
    with pytest.raises(ValueError, match="is an adapter already, of .*: leave model/adapter out"):
        load_model(str(saved), device="cpu", adapter=BOTH)


def test_dropout_of_a_released_adapter_is_left_out(saved):
    edit(saved, lora_dropout=0.5)
    policy = make_policy(saved)
    groups = random_groups(policy, LENGTHS)
    assert torch.equal(logprobs_of(policy, groups)[0], logprobs_of(policy, groups)[0])
