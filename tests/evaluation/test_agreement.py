"""Two judges on the same completions: the table by hand, and what is written."""

import json

import numpy as np
import pytest

import evaluate
from tests.composing import evaluation
from tests.rewards.builders import said
from tests.rewards.test_yamls import build as build_reward
from vidbridge.build.common import as_config_errors
from vidbridge.errors import ConfigError
from vidbridge.evaluation.agreement import agreements, cohens_kappa, compare, disagreements, read_rows
from vidbridge.judges.base import JudgeRequest, JudgeUnavailable
from vidbridge.judges.recorded import LabelledJudge, labelled
from vidbridge.runtime import launch
from vidbridge.shapes_world.exact_judge import ExactJudge


def rows_of(task, reference, *answers):
    """As completions.jsonl has them."""
    return [
        {"step": 1, "stage": "training", "uid": f"{task}/0", "task": task, "question": "What?", "reference": reference,
         "video": "0.mp4", "completion": completion.text, "finished": True, "total": 1.0, "advantage": None,
         "gates": {}, "terms": {}}
        for completion in said(*answers)
    ]  # fmt: skip


ROWS = [
    *rows_of("dark_event_infer", "the square moves left", "it moves left", "it moves up", "it grows", "Solution:"),
    *rows_of("mix_vid_qa", "red", "it is red", "it is blue"),
    *rows_of("caption", "First the square grows, then it spins.", "It grows.", ""),
    *rows_of("qa", "B", "B"),
]


class Mild(ExactJudge):
    """Gives one more than the exact judge, has no verdicts about blue, and takes nothing for a contradiction."""

    def ask(self, requests):
        return [self.mild(request, reply) for request, reply in zip(requests, super().ask(requests))]

    def mild(self, request, reply):
        if "blue" in request.text:
            return JudgeUnavailable("colour-blind")
        value = json.loads(reply)
        if request.kind == "grade":
            value["score"] = min(value["score"] + 1, 2)
        return json.dumps(value)


@pytest.fixture(scope="module")
def asked():
    return compare(ExactJudge(), Mild(), ROWS, build_reward("combined"))


def test_who_says_what_by_hand(asked):
    found = agreements(asked)
    # scores 2 1 0 become 2 2 1; what says nothing was not asked about, nor what no judge is for
    assert found["grade"].matrix.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert found["verdict"].matrix.tolist() == [[0, 0], [0, 1]] and found["verdict"].unscored == 1
    # two events of the reference: the caption states the first and is silent about the second
    assert found["entail"].matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert list(found) == ["grade", "verdict", "entail"]


def test_disagreements_are_rows_for_the_page(asked):
    texts = [row["completion"] for row in disagreements(asked)]
    assert texts == ["it moves up (first: 1; second: 2)", "it grows (first: 0; second: 1)"]


@pytest.mark.parametrize(
    "matrix, kappa",
    [
        ([[20, 5], [10, 15]], 0.4),  # the textbook's
        ([[5, 0], [0, 5]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[25, 25], [25, 25]], 0.0),
        ([[45, 15], [25, 15]], 0.130434782609),  # 60 of 100 the same, 54 by chance: 6 / 46
        ([[9, 0], [0, 0]], None),  # both always say the same: nothing beyond chance to be seen
        ([[0, 0], [0, 0]], None),
    ],
)
def test_kappa(matrix, kappa):
    assert cohens_kappa(np.array(matrix)) == kappa


def test_labels_are_a_judge(tmp_path):
    request = JudgeRequest(kind="entail", text="it grows", events=("it spins",))
    other = JudgeRequest(kind="grade", question="q", reference="r", text="t")
    lines = [labelled(request, '{"labels": ["neutral"]}'), labelled(other, JudgeUnavailable("not yet"))]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    given, missing = LabelledJudge(str(path)).ask([request, other])
    assert given == '{"labels": ["neutral"]}' and "no label in" in str(missing)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"kind": "grade", "text": "t"}', '{"kind": "grade", "text": "t", "reply": {"score": 3}}']
    + ['{"kind": "grade", "txt": "t", "reply": null}', '{"kind": "verdict", "text": "t", "reply": true}'],
)
def test_a_bad_label_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match="labels.jsonl:2: this is no labelled request"):
        LabelledJudge(str(path))


def test_the_door(tmp_path, capsys):
    """The exact judge against labels made of its own replies, one of them put right by hand."""
    completions = tmp_path / "completions.jsonl"
    completions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    grade = JudgeRequest(kind="grade", question="What?", reference="the square moves left", text="it moves up")
    labels = tmp_path / "labels.jsonl"
    replies = zip([grade, JudgeRequest(kind="grade", question="What?", reference=grade.reference, text="it grows")],
                  ['{"score": 0}', '{"score": 0}'])  # fmt: skip
    labels.write_text("".join(json.dumps(labelled(*each)) + "\n" for each in replies))
    cfg = evaluation(f"agreement.completions='{completions}'", "+judge@agreement.judge=labels",
                     f"agreement.judge.path='{labels}'")  # fmt: skip
    evaluate.judge_agreement(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path)
    figures = json.loads((tmp_path / "agreement.json").read_text())
    assert figures["grade"]["matrix"] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert (figures["grade"]["n"], figures["grade"]["unscored"], figures["grade"]["same_frac"]) == (2, 1, 0.5)
    assert "it moves up (first: 1; second: 0)" in (tmp_path / "disagreements.html").read_text()
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 6
    # what was written can be read as labels, and agrees with itself
    again = LabelledJudge(str(tmp_path / "requests.jsonl"))
    same = compare(ExactJudge(), again, ROWS, build_reward("combined"))
    assert all(each.read is not None and each.read[0] == each.read[1] for each in same)
    assert "kappa" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [[], ["+judge@agreement.judge=exact"]])
def test_what_is_missing_is_named(tmp_path, overrides):
    cfg = evaluation(*overrides)
    with pytest.raises(ConfigError, match="agreement.completions" if overrides else "agreement.judge"):
        with as_config_errors():
            evaluate.judge_agreement(launch.to_dataclasses(cfg), launch.public(cfg), tmp_path)


def test_a_label_may_hold_other_ends_of_lines(tmp_path):
    request = JudgeRequest(kind="grade", question="What?", reference="it grows", text="it\u2028grows\x85")
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(labelled(request, '{"score": 2}'), ensure_ascii=False) + "\n", encoding="utf-8")
    assert LabelledJudge(str(path)).ask([request]) == ['{"score": 2}']


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"task": "qa", "ques', "completions.jsonl has a line that is not JSON"),
        ('{"task": "qa", "question": "What?"}\n', "completions.jsonl:1 is no completion, it lacks step, stage"),
        ("[]\n", "completions.jsonl:1 is no completion"),
    ],
)
def test_what_is_no_file_of_completions_is_named(tmp_path, text, message):
    (tmp_path / "completions.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_rows(str(tmp_path / "completions.jsonl"))


def test_no_such_file():
    with pytest.raises(ConfigError, match="agreement.completions must be"):
        read_rows("/no/such/file.jsonl")


@pytest.mark.parametrize("line", ['{"step": 1}', "[]", "{"])
def test_a_line_of_something_else(tmp_path, line):
    path = tmp_path / "completions.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(ConfigError, match="completions.jsonl(:2 is no completion, it lacks st| has a line that)"):
        read_rows(str(path))
