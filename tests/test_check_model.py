"""check_model on the embedded model: every row is ok, and each says no when what it guards is broken."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.composing import config_of
from tests.doors import ROOT
from vidbridge.backbones import qwen2_5_vl
from vidbridge.backbones.mrope import mrope_positions
from vidbridge.check_model import command, forward, inputs, positions, sight
from vidbridge.memory_plan.memory import Memory
from vidbridge.policy import policy as policy_module
from vidbridge.policy.attention import packed_attention
from vidbridge.text.chat_tokens import ChatTokens

SMALL = ["data.num_rows={train: 40, val: 2, test: 2}", "rollout.max_completion_tokens=24", "prompts_per_step=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def subject(cache):
    return command.build_subject(config_of(*SMALL, f"paths.cache='{cache}'"))


def run(tmp_path, cache, *overrides):
    """The command and the rows of its record by name."""
    run_dir = tmp_path / "run"
    where = [f"paths.cache={cache}", f"hydra.run.dir={run_dir}"]
    command = [sys.executable, "-m", "vidbridge.check_model", *SMALL, *where, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    record = json.loads((run_dir / "check_model.json").read_text())
    return done, record, {row["name"]: row for row in record["rows"]}


@pytest.mark.slow
def test_the_embedded_model_is_ok_in_every_row(cache, subject, tmp_path):
    """``subject`` has made the rows of the data before."""
    done, record, rows = run(tmp_path, cache)
    assert done.returncode == 0, done
    assert record["ok"] and [row["ok"] for row in rows.values()] == [True] * len(command.CHECKS)
    assert record["dtype"] == "float32" and record["device"] == "cpu"
    assert all(name in done.stdout for name in rows) and "10 ok, 0 not ok, 0 skipped" in done.stdout


@pytest.mark.slow
def test_a_row_that_is_not_ok_is_exit_status_1(cache, subject, untrained_folder, tmp_path):
    """Random weights see nothing."""
    done, record, rows = run(tmp_path, cache, f"model.path={untrained_folder}")
    assert done.returncode == 1, done
    assert not record["ok"] and rows["it sees"]["ok"] is False and rows["it sees"]["advice"]
    assert set(rows) == set(command.CHECKS)
    assert "not ok: " in done.stderr and "it sees" in done.stderr


def with_template(processor, old, new):
    tokenizer = copy.deepcopy(processor.tokenizer)
    assert old in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
    return replace(processor, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("<|vision_start|><|video_pad|><|vision_end|>", "", "placeholders for nothing; the clips are video"),
        ("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>", "does not stand between vision_start"),
        ("'<|im_end|>", "'<|endoftext|>", "the template ends a turn with <|endoftext|>, but EOS is <|im_end|>"),
        ("<|im_start|>assistant", "<|im_start|>user", "does not end where the assistant's turn begins"),
        ("part.text", "'What next?'", "the text of the system message is not in the prompt"),
    ],
)
def test_a_template_that_loses_something(subject, old, new, found):
    row = inputs.check_template(with_template(subject.processor, old, new), subject.items[:1])
    assert row.ok is False and found in row.found


def test_texts_that_are_obeyed(subject, monkeypatch):
    monkeypatch.setattr(ChatTokens, "ids", lambda self, messages: self._encoded(self._rendered(messages)))
    row = inputs.check_control_tokens(subject.processor, subject.items[0])
    assert row.ok is False and "<|im_end|>" in row.found


def test_another_normalisation(subject):
    numbers = {name: {**content, "image_mean": [0.4, 0.5, 0.5]} for name, content in subject.processor.settings.items()}
    row = inputs.check_pixels(replace(subject.processor, settings=numbers), subject.config.model.path)
    assert row.ok is False and "0.2 apart" in row.found  # 0.1 / a deviation of 0.5


def shifted(ids, grids, seconds, **numbers):
    """Everything after a video one too far."""
    positions, delta = mrope_positions(ids, grids, seconds, **numbers)
    after = torch.isin(ids, torch.tensor(list(numbers["vision_token_ids"]))).nonzero().max() + 1
    return torch.cat([positions[:, :after], positions[:, after:] + 1], dim=1), delta + 1


def of_the_library(ids, grids, seconds, **numbers):
    """As transformers since 5.3: the text goes on after the rows and columns of the video, whatever its length."""
    positions, delta = mrope_positions(ids, grids, seconds, **numbers)
    video = torch.isin(ids, torch.tensor(list(numbers["vision_token_ids"]))).nonzero()[:, 0]
    start, after = int(positions[0, video[0]]), int(video.max()) + 1
    back = int(positions[0, after]) - (start + int(grids[-1, 1:].max()) // numbers["merge_size"])
    return torch.cat([positions[:, :after], positions[:, after:] - back], dim=1), delta - back


@pytest.mark.parametrize("wrong", [shifted, of_the_library])
def test_other_positions(subject, monkeypatch, wrong):
    monkeypatch.setattr(qwen2_5_vl, "mrope_positions", wrong)
    assert positions.check_positions(subject.processor, subject.items[:2]).ok is False


def test_siblings_that_see_each_other(subject, monkeypatch):
    reference = subject.reference
    monkeypatch.setattr(
        policy_module, "packed_attention", lambda groups, siblings: packed_attention(groups, siblings.clamp(max=1))
    )
    assert forward.check_packed(subject.policy, reference).ok is False


class Forgetful:
    """A rollout that goes on counting tokens after the prompt, as if no video had been in it."""

    def __init__(self, rollout):
        self.rollout = rollout

    def generate(self, prompts, *args, **options):
        return self.rollout.generate([replace(prompt, rope_delta=0) for prompt in prompts], *args, **options)


def test_a_decoding_step_at_other_positions(subject):
    rollout = Forgetful(subject.rollout)
    row = forward.check_greedy(
        subject.policy, rollout, replace(subject.sampling, greedy=True), subject.items[:2], subject.reference.band
    )
    assert row.ok is False and "is likelier by" in row.found


def test_a_sampler_at_another_temperature(subject):
    hotter = replace(subject.sampling, temperature=1.3)
    groups = forward.sample(subject.policy, subject.rollout, hotter, subject.items[:2])
    assert forward.check_sampler(subject.policy, groups, subject.reference.band).ok is False


def test_a_model_that_does_not_see(subject):
    with subject.policy.module.model.visual.merger.register_forward_hook(lambda *args: torch.zeros_like(args[-1])):
        row = sight.check_sight(subject.policy, subject.tasks)
    assert row.ok is False and "does not notice" in row.advice


def test_answers_of_other_rows(subject):
    """Captions moved on by one row are no likelier than any others."""
    rows = list(subject.tasks["caption"].rows)
    moved = [replace(row, solution=next.solution, rationale=next.rationale) for row, next in zip(rows, rows[1:])]
    task = replace(subject.tasks["caption"], rows=moved)
    assert sight.check_answers(subject.policy, {"caption": task}).ok is False
    assert sight.check_answers(subject.policy, {"caption": subject.tasks["caption"]}).ok is True


def test_a_plan_that_promises_too_little(subject, monkeypatch):
    for stage in ("learning", "updating"):
        monkeypatch.setattr(Memory, stage, third_of(getattr(Memory, stage)))
    row = command.check_step(subject)
    assert row.ok is False and "plan=true" in row.advice


def third_of(method):
    def third(memory, *args, **options):
        moment = method(memory, *args, **options)
        return replace(moment, device={name: held / 3 for name, held in moment.device.items()})

    return third


def test_what_does_not_fit_is_not_tried(subject, monkeypatch):
    monkeypatch.setattr(command.plan, "available_ram", lambda: 1e6)
    row = command.check_step(subject)
    assert row.ok is None and "does not fit, by plan" in row.found
