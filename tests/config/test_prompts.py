"""The words that tasks are put in: what conf/prompt says to whom, what it must not say, and what is made of it."""

from __future__ import annotations

import os
import re
import runpy
import sys
from dataclasses import dataclass

import pytest
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from tests import doors
from tests.composing import composed, config_of, evaluation, small_evaluation, templates
from vidbridge.build.evaluation import build_evaluation
from vidbridge.config.choices import Prompting
from vidbridge.config.prompt import check_template
from vidbridge.errors import CheckpointError, ConfigError
from vidbridge.policy.processor import Processor
from vidbridge.runtime import launch
from vidbridge.runtime.checkpoint import check_same
from vidbridge.tasks.base import Task
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.dark_event_infer import DarkEventInfer
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows
from vidbridge.tasks.temporal_order import TemporalOrder
from vidbridge.text.prompts import PromptTemplate, texts_in
from vidbridge.types import Sample, VideoRef

TASKS = {task.name: task for task in (QA(), Caption(), DarkEventInfer(), MixVidQA(), TemporalOrder())}
PROMPTS = sorted(path.stem for path in (launch.CONF / "prompt").glob("*.yaml"))
MODELS = sorted(path.stem for path in (launch.CONF / "model").glob("[!_]*.yaml"))
# What the embedded model was taught with, from before there was conf/prompt.
TAUGHT_SYSTEM = "Note what you see in <think> </think>, then reply in <answer> </answer>."
TAUGHT = {
    "qa": "What next?\nA. grows\nB. spins\nAnswer with one letter.",
    "caption": "What next?",
    "dark_event_infer": "One event is hidden. What next? Infer it from the rest.",
    "mix_vid_qa": "Two videos are mixed here; only one matters. What next?",
    "temporal_order": "The video is mixed up in time. What next?",
}


VIDEO = (VideoRef(path="a.mp4"),)


def sample(task, question="What next?", options=("grows", "spins")):
    return Sample(uid="x", task=task, question=question, answer="A", options=options, videos=VIDEO)


def asked(prompt, task, prompting, **texts):
    """The messages of a sample, as the chosen yaml puts it."""
    template = templates(prompt, prompting)[task]
    return TaskRows(task=TASKS[task], template=template).messages(sample(task, **texts), )


def user(text):
    return {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_model_is_asked_as_it_was_taught(task):
    system = {"role": "system", "content": [{"type": "text", "text": TAUGHT_SYSTEM}]}
    assert asked("tiny", task, Prompting.thinking) == (system, user(TAUGHT[task]))
    assert asked("tiny", task, Prompting.direct) == (user(TAUGHT[task]),)


@pytest.mark.parametrize("task", TASKS)
def test_a_released_model_is_told_where_to_reason_and_the_form_of_the_answer(task):
    system, text = texts_in(asked("qwen", task, Prompting.thinking))
    for tags in ("<think> </think>", "<answer> </answer>"):
        assert system.count(tags) == text.count(tags) == 1
    (direct,) = texts_in(asked("qwen", task, Prompting.direct))
    assert "<" not in direct and "Reply with" in direct
    form = {"qa": "one capital letter", "caption": "full description"}.get(task, "sentence")
    for each in (text, direct):
        assert "What next?" in each and form in each
        assert ("A. grows\nB. spins" in each) == (task == "qa")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_prompt_goes_with_every_model_and_every_task(prompt, model):
    chosen = ["+task=temporal_order", f"model={model}", f"prompt={prompt}"]
    config = config_of(*chosen)
    assert (config.model.name, config.prompt.name) == (model, prompt)
    assert set(config.tasks) == set(TASKS) == set(config.prompt.tasks)


CHOICES = {
    "": "tiny",
    "model=qwen2_5_vl_7b debug=smoke": "qwen",
    "experiment=vidbridge_7b": "qwen",
    "experiment=tiny_base": "tiny",
    "experiment=vidbridge_7b model=tiny": "tiny",
    "experiment=vidbridge_7b prompt=tiny": "tiny",
    "prompt=qwen": "qwen",
}


@pytest.mark.parametrize("overrides", CHOICES)
def test_a_model_brings_its_prompt_and_the_command_line_has_the_last_word(overrides):
    assert config_of(*overrides.split()).prompt.name == CHOICES[overrides]


def test_one_text_can_be_changed_and_that_of_the_direct_variant_follows_where_it_is_the_same():
    config = config_of("prompt.tasks.caption.thinking='Tell all. {question}'", "prompt.system.thinking=Think.")
    thinking, direct = (config.prompt.template("caption", prompting) for prompting in Prompting)
    assert (thinking.text, thinking.system) == ("Tell all. {question}", "Think.")
    assert (direct.text, direct.system) == ("Tell all. {question}", None)
    config = config_of("prompt.tasks.caption.direct='{question} In a word.'")
    thinking, direct = (config.prompt.template("caption", prompting) for prompting in Prompting)
    assert (thinking.text, direct.text) == ("{question}", "{question} In a word.")


BAD_TEXTS = {  # of a task that is asked with its question
    "Describe it.": "{question} is missing; there must be {question}",
    "{question} {options}": "{options} is no placeholder. Known: {question}; a brace that is meant as one ",
    "{qestion}": "{qestion} is no placeholder. Did you mean 'question'?",
    "{question!r}": "{question!r} is no placeholder",
    "{question:>9}": "{question:>9} is no placeholder",
    "{question.__class__}": "{question.__class__} is no placeholder",
    "{question} {}": "{} is no placeholder",
    "{question} }": "a brace stands alone",
    "{question} {": "a brace stands alone",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_text_that_cannot_be_filled_is_refused(text):
    with pytest.raises(ConfigError) as refusal:
        check_template("prompt.tasks.caption.thinking", text, ["question"])
    assert f"prompt.tasks.caption.thinking: {BAD_TEXTS[text]}" in str(refusal.value)


REFUSED = {
    "prompt.tasks.qa.thinking='{question}'": "prompt.tasks.qa.thinking: {options} is missing; there must be",
    "prompt.tasks.caption.direct='{question} {foo}'": "caption.direct: {foo} is no placeholder. Known: {question};",
    "prompt.system.thinking='{question}'": "prompt.system.thinking: {question} is no placeholder. Known: none;",
    "~prompt.tasks.caption": "prompt.tasks.caption.thinking is missing: the text that asks 'caption', with {question}",
    "~prompt.tasks.caption.direct ~prompt.tasks.caption.thinking": "prompt.tasks.caption.thinking is missing",
    "+task=temporal_order ~prompt.tasks.temporal_order": "prompt.tasks.temporal_order.thinking is missing",
    "+prompt.tasks.caption.dirct='{question}'": "there is no variant 'dirct'. Did you mean 'direct'?",
    "prompt.tasks.captoin.thinking=x": "prompt.tasks.captoin: there is no such key. Did you mean 'caption'?",
    "prompt.tasks.caption.thinking=null": "prompt.tasks.caption.thinking must be a text, got None",
    "prompt.tasks.caption='{question}'": "prompt.tasks.caption",
    "prompt=qwan": "prompt: there is no 'qwan'. Did you mean 'qwen'?",
    "prompt=???": "You must specify 'prompt'",  # as with a model's yaml that chooses none
    "tasks.qa._target_=vidbridge.rewards.rules.Choice": "vidbridge.rewards.rules.Choice is not a Task",
}


def test_the_tasks_of_a_benchmark_need_a_text_too():
    cfg = evaluation("benchmark=qa_jsonl", "task=[caption]", "~prompt.tasks.qa")
    with pytest.raises(ConfigError, match="prompt.tasks.qa.thinking is missing"):
        launch.to_dataclasses(cfg)


def split(overrides):
    """At the spaces outside of quotes."""
    parts = overrides.split("'")
    return ["'".join(parts)] if len(parts) > 1 else overrides.split()


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_mistake_is_refused_by_its_key(overrides):
    with pytest.raises((ConfigError, HydraException, OmegaConfBaseException)) as refusal:
        config_of(*split(overrides))
    assert REFUSED[overrides] in launch.explain(refusal.value)


DOORS = ["train.py", "train.py plan=true", "evaluate.py", "build_data.py preview"]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_before_anything_starts(door, tmp_path, monkeypatch, capsys):
    name, *arguments = door.split()
    arguments += ["prompt.tasks.qa.thinking='{question} {foo}'", "model.path=/nowhere", f"hydra.run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "")  # which the door sets: put back afterwards
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(doors.ROOT / name), run_name="__main__")
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: prompt.tasks.qa.thinking: {foo} is no placeholder. Known: {q")
    assert not list(tmp_path.iterdir())


TEXT = st.text(st.sampled_from("{}question options!:.0 \n"), max_size=20)


@given(TEXT, TEXT)
def test_the_texts_of_data_are_taken_as_they_are(question, option):
    template = PromptTemplate(text="1 {question} 2 {options} 3 {{options}}", system="{{}}")
    system, text = texts_in(TaskRows(task=QA(), template=template).messages(sample("qa", question, (option, "no"))))
    assert system == "{}"
    assert text == "1 " + question + " 2 A. " + option + "\nB. no 3 {options}"


PIECES = re.compile(r"\{\{|\}\}|\{q:?\}|[^{}]")  # all that a template with the placeholder q is made of


@given(st.lists(st.sampled_from("{{ }} {q} { } q : ! .".split()), max_size=8).map("".join))
def test_what_is_not_refused_can_be_filled_and_nothing_else_is_refused(text):
    pieces = PIECES.findall(text)
    fits = "".join(pieces) == text and "{q}" in [piece.replace(":", "") for piece in pieces]
    try:
        check_template("prompt.tasks.x.thinking", text, ["q"])
    except ConfigError as refusal:
        assert str(refusal).startswith("prompt.tasks.x.thinking: ") and not fits
        return
    (filled,) = texts_in(PromptTemplate(text=text).messages({"q": "<{q}>"}, num_videos=0))
    meant = {"{{": "{", "}}": "}", "{q}": "<{q}>", "{q:}": "<{q}>"}
    assert fits and filled == "".join(meant.get(piece, piece) for piece in pieces)


@dataclass(frozen=True, kw_only=True)
class Hinted(Task):
    """With a placeholder of its own."""

    name = "hinted"
    problem_type = "Hinted"
    placeholders = ("question", "hint")

    def construct(self, sources, rng):
        return None

    def ask(self, sample):
        return {"question": sample.question, "hint": sample.meta["hint"]}


def test_a_task_may_have_placeholders_of_its_own():
    own = [f"+tasks.hinted._target_={__name__}.Hinted", "allowed_targets=[tests.]"]
    own += ["+eval.reward.hinted.choice=1.0", "+reward.hinted.choice=1.0"]
    with pytest.raises(ConfigError, match="prompt.tasks.hinted.thinking is missing.*{question} and {hint}"):
        config_of(*own)
    config = config_of(*own, "+prompt.tasks.hinted.thinking='{hint}: {question}'")
    task = TaskRows(task=Hinted(), template=config.prompt.template("hinted", Prompting.direct))
    shown = Sample(uid="x", task="hinted", question="Who?", answer="she", videos=VIDEO, meta={"hint": "{question}"})
    assert task.messages(shown) == (user("{question}: Who?"),)


def test_a_run_of_another_prompt_is_another_run(tmp_path):
    one, other = launch.public(composed()), launch.public(composed("prompt.tasks.qa.thinking='{options} {question}'"))
    check_same(one, launch.public(composed()), tmp_path, free=())
    with pytest.raises(CheckpointError, match="(?s)prompt.tasks.qa.thinking: {question}.* -> {options} {question}"):
        check_same(one, other, tmp_path, free=())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("prompting", Prompting)
def test_evaluate_asks_in_the_variant_of_the_benchmark(prompting, random_qwen_folder, cache, tmp_path):
    chosen = ["task=[caption]", "track=none", f"benchmark.prompting={prompting.value}"]
    cfg = evaluation(*small_evaluation(random_qwen_folder, cache), *chosen)
    evaluator, _ = build_evaluation(
        launch.to_dataclasses(cfg), public=launch.public(cfg), run_dir=tmp_path
    )
    (task,) = evaluator.tasks["test"].values()
    assert task.template == templates("tiny", prompting)["caption"]
    assert evaluator.direct == (prompting is Prompting.direct) == (task.template.system is None)


def test_what_the_model_reads_has_a_place_for_the_video_and_ends_where_its_reply_begins(untrained_folder):
    processor = Processor.from_folder(untrained_folder, frames=None)
    assert processor.render(asked("tiny", "caption", Prompting.thinking)) == (
        f"<|im_start|>system\n{TAUGHT_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What next?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
