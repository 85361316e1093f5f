"""A GRPO step on completions that are written beforehand, with a model of one score a token: every number by hand."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, nan

import pytest
import torch

from tests.conftest import random_clip
from tests.policy.builders import FRAMES
from tests.steps import scripted_step
from vidbridge.algo.token_weights import LossNorm
from vidbridge.policy.processor import Processor
from vidbridge.types import Prompt, Sample


@dataclass(frozen=True)
class Asks:
    """A task of four rows that reads no file."""

    name: str = "caption"
    read: None = None

    def __len__(self):
        return 4

    def sample(self, row):
        return Sample(uid=f"caption/train/{row}", task=self.name, question="what?", answer="it", videos=(), index=row)

    def prompt(self, sample):
        content = [{"type": "video"}, {"type": "text", "text": sample.question}]
        return Prompt(messages=({"role": "user", "content": content},), clips=(random_clip(2, 16, 16),))


@dataclass
class Says:
    """Pays what stands beside the text."""

    pay: dict

    maximum = 1.0

    def __call__(self, sample, completions):
        return [self.pay[done.text] for done in completions]


@pytest.fixture(scope="module")
def processor(random_qwen_folder):
    return Processor.from_folder(random_qwen_folder, FRAMES)


@pytest.fixture
def made(processor):
    def made(texts, pay, **settings):
        return scripted_step({"caption": Asks()}, processor, texts, reward=Says(pay), **settings)

    return made


def moved(step, processor, text):
    """By how much the score of a one-token text has risen."""
    (token, _) = processor.encode_completion(text)
    return step.policy.engine.scores[token].item()


def test_the_gradient_by_hand(made, processor):
    """Red earns 1 and green 0: advantages 1/2 and -1/2, on two tokens each, EOS with them.

    The loss is the sum of -advantage * log p / 4 over the four completions with the norm ``constant`` of 1 / limit:
    that of EOS cancels, and so does what the softmax takes from all tokens. Red rises by 2 * 1/2 / (4 * 8) = 1/32.
    """
    step = made(["red", "green"], {"red": 1.0, "green": 0.0}, loss_norm=LossNorm.constant)
    metrics = step(0).metrics
    assert moved(step, processor, "red") == pytest.approx(1 / 32) == -moved(step, processor, "green")
    assert moved(step, processor, "spins") == pytest.approx(0.0, abs=1e-9)
    assert metrics["reward/caption/total"] == 0.5 and metrics["rollout/degenerate_frac"] == 0.0
    assert metrics["policy/grad_norm"] == pytest.approx(2**0.5 / 32)
    assert metrics["policy/entropy"] == pytest.approx(log(len(processor.tokenizer)))
    assert metrics["rollout/tokens"] == 8.0 and metrics["rollout/truncated_frac"] == 0.0
    assert metrics["policy/ratio_max"] == 1.0 and step.policy.engine.updates == 1


def test_a_group_that_earns_the_same_is_left_out(made, processor):
    """The second prompt has the same text twice: what the first one teaches is half of what two would teach."""
    pay = {"red": 1.0, "green": 0.0, "spins": 1.0}
    step = made(["red", "green", "spins", "spins"], pay, loss_norm=LossNorm.constant)
    assert step(0).metrics["rollout/degenerate_frac"] == 0.5
    assert moved(step, processor, "red") == pytest.approx(1 / 64)
    assert moved(step, processor, "spins") == pytest.approx(0, abs=1e-9)


def test_dynamic_sampling_asks_for_others_and_gives_up(made):
    """The n-th group of a refill is written anew from the start: only the first of two idle groups can be replaced."""
    texts = ["red", "red", "red", "red"]
    result = made(texts, {"red": 1.0}, max_refills=3)(0)
    assert result.metrics["rollout/extra_groups"] == 6.0 and result.metrics["rollout/idle_frac"] == 1.0
    texts = ["red", "green", "red", "red"]
    result = made(texts, {"red": 1.0, "green": 0.0}, max_refills=3)(0)
    assert result.metrics["rollout/degenerate_frac"] == 0.5  # as drawn first
    assert result.metrics["rollout/extra_groups"] == 1.0 and result.metrics["rollout/idle_frac"] == 0.0


def test_an_overlong_completion_earns_less(made):
    """Of 8 tokens the last half is soft: 5 words and spaces, and EOS, are 6 tokens, a half of the way from 4 to 8."""
    result = made(["red", "it is red"], {"red": 1.0, "it is red": 1.0}, overlong_frac=0.5)(0)
    assert result.metrics["rollout/overlong_penalty"] == pytest.approx(-0.25)  # 0 and -1/2
    assert result.advantages == [[pytest.approx(0.25), pytest.approx(-0.25)]] * 2
    assert result.metrics["reward/caption/total"] == 1.0


def test_what_no_judge_scored_is_masked(made, processor):
    """Red is unscored: green and spins are compared with each other, and red's score moves by nothing."""
    pay = {"red": nan, "green": 1.0, "spins": 0.0}
    step = made(["red", "green", "spins"], pay, group_size=3, loss_norm=LossNorm.constant)
    result = step(0)
    assert result.metrics["rollout/judge_failed"] == 2.0
    assert result.advantages == [[0.0, 0.5, -0.5]] * 2
    assert moved(step, processor, "red") == pytest.approx(0.0, abs=1e-9)
    assert moved(step, processor, "green") == pytest.approx(2 * 0.5 / (6 * 8)) == -moved(step, processor, "spins")


def test_a_second_update_is_of_the_ratio(made, processor):
    """The first update has moved the scores of red and green by 1/32: the ratio of the second is that of softmaxes."""
    step = made(["red", "green"], {"red": 1.0, "green": 0.0}, loss_norm=LossNorm.constant, ppo_epochs=2)
    result = step(0)
    assert step.policy.engine.updates == 2
    ratio = result.metrics["policy/ratio_max"]
    probability = torch.zeros(len(processor.tokenizer))
    for text, score in (("red", 1 / 32), ("green", -1 / 32)):
        probability[processor.encode_completion(text)[0]] = score
    expected = probability.softmax(dim=0).max() * len(probability)
    assert ratio == pytest.approx(expected.item(), rel=1e-5) and ratio > 1
