"""A new reward or task is one file and one yaml, a new prompt one yaml; nothing else is touched."""

from __future__ import annotations

import json
import re

import pytest

import train
from tests.composing import composed, config_of, small_run
from vidbridge.build.common import as_config_errors
from vidbridge.errors import ConfigError
from vidbridge.policy.processor import Processor
from vidbridge.runtime import launch

BREVITY = '''
"""Pays for short answers."""

from dataclasses import dataclass

from vidbridge.text.tags import answer_of


@dataclass(frozen=True)
class Brevity:
    max_words: int

    @property
    def maximum(self) -> float:
        return 1.0

    def __call__(self, sample, completions):
        return [float(0 < len(answer_of(done.text).split()) <= self.max_words) for done in completions]
'''

BREVITY_YAML = """
defaults: [combined, _self_]
name: brevity
terms:
  brevity: {_target_: my_brevity.Brevity, max_words: 60}
caption: {brevity: 0.5}
"""

COUNTING = '''
"""How many things happen?"""

from dataclasses import dataclass

from vidbridge.tasks.base import Draft, Task


@dataclass(frozen=True, kw_only=True)
class Counting(Task):
    name = "counting"
    problem_type = "Counting"

    letters: str = "ABC"

    def construct(self, sources, rng):
        (source,) = sources
        options = ("three", "four", "five")
        return Draft(
            problem="How many things happen?",
            answer=self.letters[len(source.events) - 3],
            options=options,
            notes=source.notes(),
        )
'''

COUNTING_YAML = """
# @package _global_
tasks:
  counting: {_target_: my_counting.Counting}
prompt:
  tasks:
    counting: {thinking: "Look closely. {question}"}
task_mix:
  shares: {counting: 2000}
reward:
  counting: {choice: 1.0}
eval:
  reward:
    counting: {choice: 1.0}
"""

SHORT_YAML = """
defaults: [tiny, _self_]
name: short
system: {thinking: null}
tasks:
  qa: {thinking: "{question} {options}"}
"""


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder of the user's own: modules beside a conf tree."""
    files = {
        "my_brevity.py": BREVITY,
        "my_counting.py": COUNTING,
        "conf/reward/brevity.yaml": BREVITY_YAML,
        "conf/task/counting.yaml": COUNTING_YAML,
        "conf/prompt/short.yaml": SHORT_YAML,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run_with(user_folder, model_folder, *overrides):
    """A run of seconds with the user's folder on the search path; returns its summary and its metrics."""
    search = f"hydra.searchpath=['file://{user_folder}/conf']"
    cfg = composed(*small_run(model_folder, user_folder / "cache"), search, "allowed_targets=[my_]", *overrides)
    run_dir = user_folder / "run"
    run_dir.mkdir()
    train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)
    return json.loads((run_dir / "summary.json").read_text()), (run_dir / "metrics.jsonl").read_text()


def test_a_new_reward(user_folder, random_qwen_folder):
    summary, metrics = run_with(user_folder, random_qwen_folder, "reward=brevity", "task_mix=caption")
    assert summary["reward"] == "brevity"
    assert "reward/caption/brevity" in metrics
    # evaluated by the whole reward all the same: 1.9 without the 0.5 for brevity
    assert summary["after"]["sampled"]["tasks"]["caption"]["max"] == pytest.approx(1.9)


def test_a_new_task(user_folder, random_qwen_folder):
    summary, metrics = run_with(user_folder, random_qwen_folder, "+task=counting", "task_mix=qa", "seed=1")
    assert list(summary["after"]["greedy"]["tasks"])[-1] == "counting" and len(summary["after"]["greedy"]["tasks"]) == 5
    assert "reward/counting/choice" in metrics


def test_a_new_task_without_a_template_is_refused(user_folder):
    search = f"hydra.searchpath=['file://{user_folder}/conf']"
    with pytest.raises(ConfigError, match="prompt.tasks.counting.thinking is missing: the text that asks 'counting'"):
        config_of(search, "allowed_targets=[my_]", "+task=counting", "~prompt.tasks.counting")


def test_a_new_prompt(user_folder, random_qwen_folder, monkeypatch):
    read, encode = [], Processor.encode

    def encoded(self, prompt):
        read.append(self.render(prompt.messages))
        return encode(self, prompt)

    monkeypatch.setattr(Processor, "encode", encoded)
    summary, _ = run_with(user_folder, random_qwen_folder, "prompt=short", "task=[qa]", "task_mix=qa")
    assert summary["prompt"] == "short"
    assert len(set(read)) >= 4  # two rows of a split, of two
    # the chat template of this model has a system message of its own, where there is none
    start = "<|im_start|>system\nthe square is red<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
    assert all(re.fullmatch(re.escape(start) + r"<.vision_end.>What [^\n]*\? A\. (.|\n)*", text) for text in read)


def test_modules_that_are_not_named_in_allowed_targets_are_refused(user_folder, random_qwen_folder):
    with pytest.raises(ConfigError, match="my_brevity.Brevity' is not allowed"), as_config_errors():
        run_with(user_folder, random_qwen_folder, "reward=brevity", "allowed_targets=[]")
