"""What each task does to the gradient: identities with the gradient that is learnt from, and numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.composing import config_of
from tests.conftest import SHAPES_FRAMES
from tests.record.builders import group
from tests.steps import SumOfIds, make_step, timeless
from vidbridge.diagnostics.early_dips import early_dips
from vidbridge.diagnostics.gradients import (
    NUM_COORDINATES,
    advantage_metrics,
    coordinates,
    entropy_metrics,
    gradient_metrics,
    reasoning_tokens,
    shares_of,
)
from vidbridge.errors import ConfigError
from vidbridge.policy.processor import Processor
from vidbridge.types import Completion

QA, CAPTION = "qa", "caption"


@pytest.fixture(scope="module")
def tasks(shapes_tasks):
    return {name: shapes_tasks[name] for name in ("caption", "mix_vid_qa")}


class CaptionsAlone(SumOfIds):
    """The same for all siblings of any other task, so that these teach nothing."""

    def __call__(self, sample, completions):
        return super().__call__(sample, completions) if sample.task == "caption" else [0.5] * len(completions)


def look(tasks, folder, **options):
    """A step that is looked at: its metrics, the gradients by share, and the gradient that the update took."""
    step = make_step(tasks, folder, prompts_per_step=6, every=1, **options)
    probes, updated = [], []
    at, update = step.diagnostics.at, step.policy.update

    def kept(number):
        probes.append(at(number))
        return probes[-1]

    def taken():
        weights = [weight for weight in step.policy.module.parameters() if weight.requires_grad]
        places = coordinates([weight.numel() for weight in weights], NUM_COORDINATES)
        updated.append(torch.cat([w.grad.flatten()[place] for w, place in zip(weights, places)]))
        return update()

    step.diagnostics = SimpleNamespace(at=kept)
    step.policy.update = taken
    return step(0).metrics, probes[0].gradients, updated[0]


def test_the_gradients_of_the_tasks_add_up_to_the_one_that_is_learnt_from(tasks, untrained_folder):
    metrics, gradients, updated = look(tasks, untrained_folder)
    assert {task for task, _ in gradients} == {"caption", "mix_vid_qa"} and updated.any()
    torch.testing.assert_close(sum(gradients.values()), updated, rtol=1e-4, atol=1e-7)
    assert {"gradient/cosine/caption/mix_vid_qa", "gradient/cosine/caption/caption"} <= metrics.keys()


def test_the_gradient_of_a_task_is_that_of_a_step_in_which_no_other_teaches(tasks, untrained_folder):
    _, gradients, _ = look(tasks, untrained_folder)
    metrics, alone, updated = look(tasks, untrained_folder, reward=CaptionsAlone)
    captions = sum(gradient for (task, _), gradient in gradients.items() if task == "caption")
    torch.testing.assert_close(captions, updated, rtol=1e-4, atol=1e-7)
    assert {task for task, _ in alone} == {"caption"}
    # the only gradient there is has the norm of the whole
    assert metrics["gradient/norm/caption"] == pytest.approx(metrics["policy/grad_norm"], rel=1e-4)
    assert metrics["advantage/caption/share"] == 1.0 and metrics["advantage/mix_vid_qa/idle_frac"] == 1.0


def test_a_step_that_is_looked_at_learns_the_same(tasks, untrained_folder):
    plain = make_step(tasks, untrained_folder, prompts_per_step=6)
    looked = make_step(tasks, untrained_folder, prompts_per_step=6, every=2)
    for number in (0, 1):
        one, other = (timeless(step(number).metrics) for step in (plain, looked))
        new = other.keys() - one.keys()
        assert bool(new) == (number == 0)
        assert {name.split("/")[0] for name in new} <= {"gradient", "entropy", "advantage"}
        assert {name: other[name] for name in one} == pytest.approx(one, rel=1e-3, abs=1e-5)
    # not weight by weight: Adam makes whole steps out of gradients that are nothing but rounding
    sizes = [[w.double().square().sum().item() for w in step.policy.module.parameters()] for step in (plain, looked)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


def test_cosines_and_norms_by_hand():
    vectors = {(QA, 0): [3.0, 0.0], (QA, 1): [0.0, 4.0], (CAPTION, 0): [-3.0, 4.0], ("idle", 0): [0.0, 0.0]}
    metrics = gradient_metrics({share: torch.tensor(vector) for share, vector in vectors.items()}, grad_norm=16.0)
    # qa is (3, 4), caption (-3, 4): cosine (-9 + 16) / 25; the whole is (0, 8), so that 5 is 5 / 8 of 16
    assert metrics == pytest.approx(
        {
            "gradient/cosine/caption/qa": 7 / 25,
            "gradient/cosine/qa/qa": 0.0,
            "gradient/norm/qa": 10.0,
            "gradient/norm/caption": 10.0,
        }
    )


def test_nothing_is_said_where_nothing_teaches():
    assert gradient_metrics({(QA, 0): torch.zeros(3)}, grad_norm=0.0) == {}


@given(st.lists(st.tuples(st.sampled_from([QA, CAPTION]), st.booleans()), min_size=1, max_size=12))
def test_shares_are_the_groups_that_teach_each_once(drawn):
    groups = [SimpleNamespace(sample=SimpleNamespace(task=task)) for task, _ in drawn]
    teaches = torch.tensor([teaches for _, teaches in drawn])
    shares = shares_of(groups, teaches)
    assert (sum(mask.int() for mask in shares.values()) == teaches.int()).all()
    for (task, half), mask in shares.items():
        assert all(groups[place].sample.task == task for place in mask.nonzero())
        assert abs(int(mask.sum()) - int(shares.get((task, 1 - half), torch.tensor(0)).sum())) <= 1


def test_coordinates_are_fixed_and_in_every_weight():
    places = coordinates([10, 1000, 1], 100)
    assert [len(place) for place in places] == [1, 99, 1]  # 100 / 1011 of each, at least one
    assert all(torch.equal(one, two) for one, two in zip(places, coordinates([10, 1000, 1], 100)))
    assert all(place.max() < size for place, size in zip(places, [10, 1000, 1]))


@pytest.mark.parametrize("text, reasoning", [
    ("<think>it is red.</think><answer>B</answer>", "<think>it is red.</think>"),
    ("it is red. <answer>B", "it is red."),
    ("<answer>B</answer>", ""),
    ("it is red.", None),  # no answer: all of it, EOS too
])
def test_reasoning_ends_where_the_answer_begins(text, reasoning, random_qwen_folder):
    processor = Processor.from_folder(random_qwen_folder, SHAPES_FRAMES)
    ids = processor.encode_completion(text)
    wanted = len(ids) if reasoning is None else len(processor.encode_completion(reasoning)) - 1
    found = reasoning_tokens(Completion(text=processor.decode(ids), token_ids=ids), processor)
    # a space before the tag is a token of its own in this tokenizer
    assert found - wanted == (1 if ". <answer>" in text else 0)


def test_entropy_is_the_mean_surprise_on_either_side(random_qwen_folder):
    processor = Processor.from_folder(random_qwen_folder, SHAPES_FRAMES)
    ids = processor.encode_completion("<think>red</think><answer>B</answer>")  # 3 tokens, then 4 with EOS
    logprobs = (-1.0, -2.0, -3.0, -0.5, -0.5, -1.0, 0.0)
    done = Completion(text=processor.decode(ids), token_ids=ids, sampler_logprobs=logprobs)
    metrics = entropy_metrics([SimpleNamespace(sample=SimpleNamespace(task=QA), completions=[done])], processor)
    assert metrics == {"entropy/qa/reasoning": 2.0, "entropy/qa/answer": 0.5}


def test_what_each_task_has_to_teach():
    groups = [group(totals=(1.0, 0.0))] * 2
    assert advantage_metrics(groups, torch.tensor([[1.0, -1.0], [0.0, 0.0]])) == {
        "advantage/qa/idle_frac": 0.5,
        "advantage/qa/share": 1.0,
    }


def looks(*scores, every=10):
    keys = ("val/sampled/qa", "val/sampled/mean")
    return [{"step": every * number, **dict.fromkeys(keys, score)} for number, score in enumerate(scores)]


def test_a_dip_is_early_deep_and_comes_back_or_not():
    assert early_dips(looks(0.5, 0.4, 0.38, 0.6, 0.7)) == {"qa": {"depth": 0.12, "step": 20, "back_at": 30}}
    assert early_dips(looks(0.5, 0.4, 0.45, 0.4, 0.45)) == {"qa": {"depth": 0.1, "step": 10, "back_at": None}}
    assert early_dips(looks(0.5, 0.47, 0.5, 0.6, 0.7)) == {}  # within noise
    assert early_dips(looks(0.5, 0.6, 0.6, 0.6, 0.2)) == {}  # late: no dip but a loss
    assert early_dips([{"step": 3, "policy/lr": 0.1}]) == {}


def test_supervised_fine_tuning_has_none():
    with pytest.raises(ConfigError, match="diagnostics_every looks at GRPO"):
        config_of("algo=sft", "steps=10", "diagnostics_every=5")
