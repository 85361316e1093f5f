"""rollout=vllm beside our own rollout: real vLLM on a CPU, in the environment that make test-vllm makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not in this environment: make test-vllm")

import vidbridge  # noqa: E402
from tests.conftest import SHAPES_FRAMES, random_clip, random_image, video_prompt  # noqa: E402
from tests.policy.builders import sampled_groups, whole_batch  # noqa: E402
from vidbridge.errors import RolloutError  # noqa: E402
from vidbridge.policy.adapters import LoraConfig, adapted_layers  # noqa: E402
from vidbridge.policy.loading import load_model  # noqa: E402
from vidbridge.policy.policy import Policy  # noqa: E402
from vidbridge.policy.processor import Processor  # noqa: E402
from vidbridge.rollout.shared_prefix import SharedPrefixRollout  # noqa: E402
from vidbridge.rollout.vllm import VllmRollout  # noqa: E402
from vidbridge.runtime.random_state import random_state  # noqa: E402
from vidbridge.types import SamplingParams  # noqa: E402

MODELS = ("tiny_qwen2_5_vl", "tiny_qwen3_vl")
FIRST, SECOND, IMAGE = random_clip(10, 48, 48, seed=1), random_clip(4, 48, 48, fps=1.0, seed=2), random_image(48, 48)
# a video, two of other lengths and rates, none, an image, an image before a video
PROMPTS = [
    video_prompt(*clips, text="What moves?") for clips in ((FIRST,), (SECOND, FIRST), (), (IMAGE,), (IMAGE, SECOND))
]
SHORT = SamplingParams(max_completion_tokens=20)
THREADS = torch.get_num_threads()


def make_policy(name: str, **loading) -> Policy:
    folder = Path(vidbridge.__file__).parent / "shapes_world" / "assets" / name
    module = load_model(str(folder), device="cpu", **loading)
    return Policy(module, Processor.from_folder(folder, SHAPES_FRAMES, max_prompt_tokens=900))


@pytest.fixture(scope="module", params=MODELS)
def policy(request):
    return make_policy(request.param)


@pytest.fixture(scope="module")
def encoded(policy):
    return [policy.processor.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def engine(policy):
    before = random_state()
    engine = VllmRollout(policy, max_rows=64, max_completion_tokens=64, cache_bytes=2e8)
    assert random_state() == before and torch.get_num_threads() == THREADS
    torch.set_num_threads(THREADS)  # ours again, not a warning
    yield engine
    engine.close()


@pytest.fixture
def moved(policy, engine):
    """Other weights for one test."""
    before = {name: weight.clone() for name, weight in policy.module.state_dict().items()}
    yield policy
    policy.module.load_state_dict(before)
    engine.sync(policy)


def ids_of(completions):
    return [[row.token_ids for row in group] for group in completions]


def gap(policy, prompts, encoded, completions):
    """-> the largest distance to what the learner says, nats"""
    batch = whole_batch(policy, sampled_groups(prompts, encoded, completions))
    return (policy.logprobs(batch)[0].detach() - batch.sampler_logprobs).abs()[batch.loss_mask].max().item()


def test_greedy_is_ours_token_for_token(policy, engine, encoded):
    greedy = replace(SHORT, greedy=True, max_completion_tokens=40)
    found, wanted = (each.generate(encoded, 2, greedy, seed=0) for each in (engine, SharedPrefixRollout(policy)))
    assert ids_of(found) == ids_of(wanted)
    assert [[row.text for row in group] for group in found] == [[row.text for row in group] for group in wanted]
    assert [[row.finished for row in group] for group in found] == [[r.finished for r in group] for group in wanted]
    assert {row.finished for group in found for row in group} == {True, False}, "both ways to end should be seen"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_it_says_of_its_tokens_is_what_the_learner_says(policy, engine, encoded, temperature, monkeypatch):
    monkeypatch.setattr(policy, "temperature", temperature)
    completions = engine.generate(encoded, 4, replace(SHORT, temperature=temperature), seed=1)
    assert gap(policy, PROMPTS, encoded, completions) < 1e-4
    suppressed = set(policy.processor.suppressed_ids.tolist())
    assert not any(suppressed & set(row.token_ids) for group in completions for row in group)
    assert all(len({row.token_ids for row in group}) > 1 for group in completions)  # siblings differ


def test_top_p_and_min_p_are_told_as_ours_tells_them(policy, engine, encoded):
    """The learner's probability is the sampler's times what was left, at most 1 and at least top_p."""
    cut = engine.generate(encoded, 8, replace(SHORT, top_p=0.5), seed=1)
    batch = whole_batch(policy, sampled_groups(PROMPTS, encoded, cut))
    kept = (policy.logprobs(batch)[0].detach() - batch.sampler_logprobs).exp()[batch.loss_mask]
    assert 0.5 - 1e-3 < kept.min() < 0.9 and kept.max() < 1 + 1e-3
    narrow = engine.generate(encoded, 2, replace(SHORT, min_p=0.9999), seed=1)
    greedy = SharedPrefixRollout(policy).generate(encoded, 2, replace(SHORT, greedy=True), seed=0)
    assert ids_of(narrow) == ids_of(greedy)


def test_it_draws_from_our_distribution(policy, engine, encoded):
    """The first token of 2000 completions: chi-squared of the counts, within four deviations of its mean."""
    drawn = engine.generate(encoded[:1], 2000, replace(SHORT, max_completion_tokens=1), seed=3)
    counts = np.bincount([row.token_ids[0] for row in drawn[0]], minlength=policy.module.lm_head.out_features)
    one_each = SharedPrefixRollout(policy).generate(encoded[:1], 2000, replace(SHORT, max_completion_tokens=1), seed=3)
    known = {row.token_ids[0]: np.exp(row.sampler_logprobs[0]) for group in (*drawn, *one_each) for row in group}
    often = {token: p for token, p in known.items() if 2000 * p >= 5}
    assert len(often) >= 2
    expected = np.array([2000 * p for p in often.values()])
    chi2 = (((counts[list(often)] - expected) ** 2) / expected).sum()
    assert abs(chi2 - len(often)) < 4 * np.sqrt(2 * len(often))


def test_a_completion_depends_on_seed_and_index_alone(engine, encoded):
    whole = engine.generate(encoded, 3, SHORT, seed=5)
    assert engine.generate(encoded, 3, SHORT, seed=5) == whole
    order = [3, 0, 4]
    some = engine.generate([encoded[index] for index in order], 3, SHORT, seed=5, indices=order)
    assert ids_of(some) == [ids_of(whole)[index] for index in order]
    assert ids_of(engine.generate(encoded, 3, SHORT, seed=6)) != ids_of(whole)


def test_every_prompt_is_told_once_when_it_has_ended(engine, encoded):
    told, shares = {}, []
    done = engine.generate(
        encoded, 2, SHORT, seed=0, indices=[7, 5, 3, 2, 0], ended=told.__setitem__, progress=shares.append
    )
    assert told == dict(zip([7, 5, 3, 2, 0], done)) and shares[-1] == 1.0 and shares == sorted(shares)


def test_stop_strings_end_a_completion_as_ours(policy, engine, encoded):
    greedy = replace(SHORT, greedy=True, max_completion_tokens=40)
    free = engine.generate(encoded[:1], 1, greedy, seed=0)[0][0]
    word = free.text.split()[2]
    stopped = replace(greedy, stop=(word,))
    found, wanted = (each.generate(encoded, 1, stopped, seed=0) for each in (engine, SharedPrefixRollout(policy)))
    assert ids_of(found) == ids_of(wanted) and found[0][0].finished and found[0][0].text.endswith(word)


@pytest.mark.parametrize("part", ["all", "vision"])
def test_new_weights_are_sampled_from(moved, engine, encoded, part):
    old = engine.generate(encoded, 2, SHORT, seed=1)
    with torch.no_grad():
        for name, weight in moved.module.named_parameters():
            if part == "all" or "visual" in name:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert gap(moved, PROMPTS, encoded, engine.generate(encoded, 2, SHORT, seed=1)) > 1e-2  # it has the old ones
    engine.sync(moved)
    new = engine.generate(encoded, 2, SHORT, seed=1)
    assert gap(moved, PROMPTS, encoded, new) < 1e-4
    assert ids_of(new)[0] != ids_of(old)[0]


def test_what_old_weights_have_left_in_a_cache_would_be_noticed(moved, engine, encoded, monkeypatch):
    """With the same keys and a cache that is kept, prompts are those of the old vision tower."""
    engine.generate(encoded, 2, SHORT, seed=1)
    with torch.no_grad():
        for name, weight in moved.module.named_parameters():
            if "visual" in name:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: None)
    version = engine.version
    engine.sync(moved)
    engine.version = version  # the keys of before
    assert gap(moved, PROMPTS, encoded, engine.generate(encoded, 2, SHORT, seed=1)) > 1e-2
    engine.version = version + 1
    assert gap(moved, PROMPTS, encoded, engine.generate(encoded, 2, SHORT, seed=1)) < 1e-4


def test_an_engine_that_sleeps_is_awake_when_it_is_filled_and_when_it_samples(moved, engine, encoded, monkeypatch):
    """The order of the calls: on a CPU vLLM does nothing in sleep and wake_up, but its scheduler stops and goes on."""
    calls = []

    def noted(of, name):
        call = getattr(of, name)

        def note(*args, **kwargs):
            calls.append(args[0] if name == "collective_rpc" else name)
            return call(*args, **kwargs)

        monkeypatch.setattr(of, name, note)

    def called():
        found = calls[:]
        calls.clear()
        return found

    noted(engine.llm, "sleep")
    noted(engine.llm, "wake_up")
    noted(engine.llm, "collective_rpc")
    noted(engine, "_completions")
    monkeypatch.setattr(engine, "sleeps", True)

    awake = engine.generate(encoded[:1], 2, SHORT, seed=1)
    assert called() == ["_completions", "sleep"]
    for _ in range(2):  # as an evaluation does
        assert engine.generate(encoded[:1], 2, SHORT, seed=1) == awake
        assert called() == ["wake_up", "_completions", "sleep"]
    with torch.no_grad():
        moved.module.lm_head.weight += 0.05
        moved.module.model.language_model.norm.weight *= 1.5
    engine.sync(moved)
    assert called() == ["wake_up", "reload_weights"]
    new = engine.generate(encoded, 2, SHORT, seed=1)
    assert called() == ["_completions"] * len(encoded) + ["sleep"]
    assert gap(moved, PROMPTS, encoded, new) < 1e-4
    with pytest.raises(KeyError):
        engine.generate(encoded, 2, SHORT, seed=1, ended=lambda index, done: {}[index])
    assert called()[-1] == "sleep"
    with pytest.raises(RolloutError):  # nothing is sampled: it sleeps on
        engine.generate([replace(encoded[0], pixel_values=encoded[0].pixel_values[:-4])], 2, SHORT, seed=1)
    assert called() == []


def test_adapters_are_added_on_the_way(policy, engine, encoded):
    name = Path(policy.module.name_or_path).name
    adapted = make_policy(name, adapter=LoraConfig(rank=2, targets=["language_model", "visual"]))
    with torch.no_grad():
        for layer in adapted_layers(adapted.module).values():
            (key,) = layer.active_adapters
            up = layer.lora_B[key].weight
            up += 0.05 * torch.randn(up.shape, generator=torch.Generator().manual_seed(0))
    engine.sync(adapted)
    try:
        completions = engine.generate(encoded, 2, SHORT, seed=1)
        assert gap(adapted, PROMPTS, encoded, completions) < 1e-4
        assert gap(policy, PROMPTS, encoded, completions) > 1e-2
    finally:
        engine.sync(policy)


def test_a_prompt_whose_parts_do_not_fit_is_refused(engine, encoded):
    prompt = encoded[0]
    for wrong in (
        replace(prompt, grid_thw=prompt.grid_thw + torch.tensor([[1, 0, 0]])),
        replace(prompt, pixel_values=prompt.pixel_values[:-4]),
        replace(prompt, input_ids=prompt.input_ids[prompt.input_ids != prompt.input_ids.mode().values]),
    ):
        with pytest.raises(RolloutError, match="prompt 4: .* tokens of videos and images, .* do not fit together"):
            engine.generate([prompt, wrong], 2, SHORT, seed=0, indices=[1, 4])
    with pytest.raises(RolloutError, match="qa/train/7 has 10000 tokens, the engine takes"):
        long = replace(prompt, input_ids=torch.zeros(10000, dtype=torch.long), uid="qa/train/7")
        engine.generate([long], 2, SHORT, seed=0)
    many = replace(prompt, grid_thw=prompt.grid_thw.repeat(17, 1))
    with pytest.raises(RolloutError, match="prompt 2 shows 17 videos and images: at most 16"):
        engine.generate([many], 2, SHORT, seed=0, indices=[2])
    assert not engine.llm.llm_engine.has_unfinished_requests()  # what came before it is not left behind
    assert len(engine.generate([prompt], 2, SHORT, seed=0)[0]) == 2  # it goes on
