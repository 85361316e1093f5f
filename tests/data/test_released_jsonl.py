"""The released file as it is: one JSONL for all tasks, paths of another machine, options in the text."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.exporting import export_released
from vidbridge.data.file_dataset import split_by_video
from vidbridge.data.formats.jsonl import JsonlIndex, _plain
from vidbridge.data.formats.released_jsonl import VidbridgeR1
from vidbridge.data.rows import parse_row
from vidbridge.errors import DataError, NoRows
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.qa import QA
from vidbridge.tasks.rows import TaskRows

BUDGET = FrameBudget(fps=2.0, max_frames=24, min_pixels=2304, max_pixels=2304, multiple=16)
ROW = {"problem": "What?", "solution": "<answer>it grows</answer>", "video": "a.mp4", "problem_type": "caption"}
OPTIONS = "What?\nA. grows\nB. spins"
CHOICE = {**ROW, "problem": OPTIONS, "solution": "<answer>B. spins</answer>", "problem_type": "MCQA"}


def write(path, *lines):
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def dataset(path, root, **options):
    return VidbridgeR1(root=str(root), files={"train": str(path)}, workers=0, **options)


def test_all_tasks_of_one_file_with_the_paths_of_another_machine(tmp_path):
    path = export_released(tmp_path, [QA(), Caption(), MixVidQA()], 12, prefix="/home/author/videos/")
    data = dataset(path, tmp_path / "videos", video_prefix="/home/author/videos/", held_out_frac=0.25)
    uids = set()
    for task in (QA(), Caption(), MixVidQA()):
        for split in ("train", "val", "test"):
            rows = data.rows(task, split)
            filled = TaskRows(task=task, rows=rows, frames=BUDGET, read=data.reader)
            for index, row in enumerate(rows):
                line = json.loads(path.read_text().splitlines()[int(row.uid.split("/")[1]) - 1])
                assert split_by_video(line["video"], 0.25) == split
                assert line["problem_type"] == task.problem_type and line["problem"].startswith(row.problem)
                assert line["solution"] == row.solution
                if index == 0:
                    assert filled.prompt(filled.sample(0)).clips[0].frames.shape[1:] == (48, 48, 3)
            uids |= {row.uid for row in rows}
    assert len(uids) == 36  # no row is lost, none is in two splits


def test_a_split_with_a_file_of_its_own_takes_nothing_from_training(tmp_path):
    rows = [{**ROW, "video": f"{k}.mp4"} for k in range(200)]
    train, test = write(tmp_path / "train.jsonl", *rows), write(tmp_path / "test.jsonl", *rows[:7])
    data = VidbridgeR1(root=str(tmp_path), files={"train": str(train), "test": str(test)}, held_out_frac=0.1)
    sizes = [len(data.rows(Caption(), split)) for split in ("train", "val", "test")]
    assert sizes[0] + sizes[1] == 200 and 10 <= sizes[1] <= 30 and sizes[2] == 7
    with pytest.raises(DataError, match="no row has problem_type 'MCQA'; there are caption"):
        data.rows(QA(), "train")


FAULTS = [
    (b"{not json", "not JSON"),
    (b"[1]", "expected a JSON object"),
    (b'{"problem": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
    ({**ROW, "problem": " "}, "field 'problem' must be a text"),
    ({**ROW, "video": 7}, "field 'video'"),
    ({key: ROW[key] for key in ROW if key != "solution"}, "field 'solution' is missing"),
    ({**ROW, "solution": "grows"}, "must be <answer>..</answer>"),
    ({**ROW, "solution": "<answer> </answer>"}, "is empty"),
    ({**CHOICE, "problem": "What? grows or spins"}, "names no options"),
    ({**CHOICE, "solution": "<answer>C</answer>"}, "field 'solution': the answer 'C' is neither an option"),
    ({**CHOICE, "problem": "What?\nA. grows\nB. Grows"}, "must be unlike the others"),
    ({**ROW, "problem_type": ["caption"]}, "field 'problem_type'"),
    ({**CHOICE, "problem": "What?\nA. grows\nB. "}, "none of them empty"),
    ({**ROW, "solution": "<answer>x</answer><answer>y</answer>"}, "must hold one answer"),
    ({**ROW, "video": "\ud800.mp4"}, "field 'video' is no Unicode text"),
]


def test_all_faults_are_listed_in_one_pass_and_can_be_skipped(tmp_path):
    path = write(tmp_path / "train.jsonl", ROW, *[line for line, _ in FAULTS], b"", CHOICE)
    with pytest.raises(DataError) as error:
        dataset(path, tmp_path).rows(Caption(), "train")
    *told, advice = str(error.value).splitlines()
    assert advice == "data.skip_bad_rows=true leaves them out"
    assert [int(line.split(":")[1]) for line in told] == list(range(2, 2 + len(FAULTS)))
    for line, (_, message) in zip(told, FAULTS):
        assert message in line
    index = JsonlIndex.of(path)
    assert index.numbers.tolist() == [1, 3 + len(FAULTS)] and len(index.problems) == len(FAULTS)
    lenient = dataset(path, tmp_path, skip_bad_rows=True, held_out_frac=1e-9)
    assert [row.uid for row in lenient.rows(Caption(), "train")] == ["train/1"]
    assert [row.answer for row in lenient.rows(QA(), "train")] == ["B"]


def test_the_quick_look_at_a_line_agrees_with_the_close_one(tmp_path):
    """Whatever passes without being parsed in full is a good row."""
    lines = [ROW, CHOICE, {**CHOICE, "solution": "<answer>A</answer>"}, {**ROW, "extra": 1}, {**ROW, "video": "ü.mp4"}]
    lines += [{**ROW, "video": "\U0001f3ac.mp4"}]  # two halves of one character in JSON
    path = write(tmp_path / "train.jsonl", *lines)
    index = JsonlIndex.of(path)
    assert len(index.offsets) == len(lines)
    content = path.read_bytes()
    for at, number, kind in zip(index.offsets, index.numbers, index.kinds):
        row = parse_row(content[at:].splitlines()[0], path, int(number))
        assert row.problem_type == index.problem_types[kind]


PIECES = ["A. ", "B. ", "C. ", " A. ", "D.", "(A) ", "B) ", "- A. ", "**B.** ", "Options:", "<video>", "<|im_end|>"]
PIECES += ["x", "X", "\n", "\n", "\r", " ", "  ", "option A: ", "1. ", "  E. x", "a man "]


@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
        st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), min_size=2, max_size=4).map(
            lambda texts: "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", texts))
        ),
    ),
    st.sampled_from(["A", "B", "b", "A. x", " A"]),
)
def test_no_choice_passes_the_quick_look_and_fails_the_close_one(text, answer):
    line = json.dumps({**CHOICE, "problem": f"What?\n{text}", "solution": f"<answer>{answer}</answer>"})
    if _plain(line.encode()) is not None:
        parse_row(line.encode(), Path("a.jsonl"), 1)


def test_a_mark_at_the_beginning_of_a_file_is_no_fault(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8-sig")
    assert dataset(tmp_path / "train.jsonl", tmp_path).problem_types() == {"caption": 1}


def test_a_line_that_changed_since_is_named(tmp_path):
    path = write(tmp_path / "train.jsonl", ROW, {**ROW, "video": "b.mp4"})
    rows = dataset(path, tmp_path, held_out_frac=1e-9).rows(Caption(), "train")
    assert rows[1].video == "b.mp4"
    write(path, ROW, {**ROW, "vidoe": "b.mp4", "video": 3})
    with pytest.raises(DataError, match="train.jsonl:2: field 'video'"):
        rows[1]


@pytest.mark.parametrize(
    "problem",
    [
        "What next?\nA. grows\nand turns\nB. spins",
        "What next?\n- A. grows and turns\n- B. spins",
        "What next?\nOption A: grows and turns\nOption B: spins",
        "<video>\nWhat next?\n**A.** grows and turns\n**B.** spins",
        "<image>What next?\nA、grows and turns\nB、spins",
    ],
)
def test_options_of_the_question_however_they_are_marked(problem, tmp_path):
    path = write(tmp_path / "train.jsonl", {**CHOICE, "problem": problem, "solution": "<answer>A</answer>"})
    (row,) = dataset(path, tmp_path, held_out_frac=1e-9).rows(QA(), "train")
    assert (row.problem, row.options, row.answer) == ("What next?", ("grows and turns", "spins"), "A")


def test_options_in_a_field_of_their_own_come_without_their_letters(tmp_path):
    forms = (["A. x", "B. y"], {"A": "x", "B": "y"}, "x\ny")
    lines = [{**CHOICE, "problem": "What?", "options": options} for options in forms]
    lines += [{**lines[0], "problem": "What?\nA. x\nB. y"}, {**lines[0], "solution": "<answer>B. y</answer>"}]
    rows = dataset(write(tmp_path / "train.jsonl", *lines), tmp_path, held_out_frac=1e-9).rows(QA(), "train")
    assert [(row.problem, row.options, row.answer) for row in rows] == [("What?", ("x", "y"), "B")] * 5


def test_what_spells_a_control_token_is_refused_at_the_quick_look_too(tmp_path):
    spelt = "<|im_end|>"
    lines = [
        {**ROW, "problem": f"What? {spelt}"},
        {**ROW, "solution": f"<answer>It {spelt}</answer>"},
        {**ROW, "rationale": spelt},
        {**CHOICE, "options": ["x", spelt], "problem": "What?"},
    ]
    fine = {**ROW, "problem": "Is <think> or <answer> shown, or a | b < c |> d?"}
    path = write(tmp_path / "train.jsonl", *lines, fine)
    index = JsonlIndex.of(path)
    assert index.numbers.tolist() == [5]
    assert index.problems == tuple(
        f"{path}:{number}: field '{field}' spells the control token {spelt}; take it out"
        for number, field in enumerate(("problem", "solution", "rationale", "options"), start=1)
    )


def test_a_split_without_rows_says_how_many_videos_to_set_aside(tmp_path):
    path = write(tmp_path / "train.jsonl", *({**ROW, "video": f"{k}.mp4"} for k in range(9)))
    with pytest.raises(NoRows, match="no test row has problem_type 'caption', with data.held_out_frac=1e-06") as error:
        dataset(path, tmp_path, held_out_frac=1e-6).rows(Caption(), "test")
    named = re.search(r"data.held_out_frac=(0\.\d+) gives every split rows of caption", str(error.value))
    enough = dataset(path, tmp_path, held_out_frac=float(named[1]))
    assert all(len(enough.rows(Caption(), split)) for split in ("train", "val", "test"))
