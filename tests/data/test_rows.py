import json

import pytest

from vidbridge.data.rows import read_rows, write_rows
from vidbridge.errors import DataError
from vidbridge.tasks.rows import Row

GOOD = {
    "problem": "What?",
    "solution": "<answer>B</answer>",
    "video": "videos/0.mp4",
    "problem_type": "MCQA",
    "options": ["grows", "spins"],
}


def write(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    texts = [json.dumps(line) if isinstance(line, dict | list) else line for line in lines]
    path.write_bytes(b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts))
    return path


def test_the_released_schema_is_enough(tmp_path):
    line = {name: GOOD[name] for name in ("problem", "video")}
    line |= {"solution": "<answer>it grows</answer>", "problem_type": "caption"}
    (row,) = read_rows(write(tmp_path, line), "caption")
    assert (row.problem, row.answer, row.problem_type) == ("What?", "it grows", "caption")
    assert row.video == str(tmp_path / "videos/0.mp4") and row.options == () and row.uid == "rows/1"


def test_written_rows_come_back_equal(tmp_path):
    rows = [
        Row(
            uid="dark_event_infer/train/0",
            problem="What happens?",
            solution="<answer>the square grows</answer>",
            video=str(tmp_path / "videos/0.mp4"),
            problem_type="DarkEventInfer",
            rationale="red square: dark.",
            meta={"dark": [1.0, 2.0]},
        )
    ]
    write_rows(rows, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl", "DarkEventInfer") == rows
    assert not (tmp_path / "rows.partial").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ({**GOOD, "problem": ""}, "field 'problem' must be a text that is not empty"),
        ({**GOOD, "video": 7}, "field 'video'"),
        ({key: GOOD[key] for key in GOOD if key != "solution"}, "field 'solution' is missing"),
        ({**GOOD, "solution": "B"}, "must be <answer>..</answer>"),
        ({**GOOD, "problem_type": "QA"}, "field 'problem_type' must be 'MCQA' here, found 'QA'"),
        ({**GOOD, "options": "A"}, "field 'options'"),
        ({**GOOD, "uid": 3}, "field 'uid'"),
        (b'{"problem": "\xff"}', "not UTF-8 (byte 0xff at byte 14)"),
        ({**GOOD, "solution": "<answer> </answer>"}, "rows/2: the answer in '<answer> </answer>' is empty"),
        ({**GOOD, "options": []}, "names no options A., B., .. and there are none in a field 'options'"),
        ({**GOOD, "options": ["grows"], "solution": "<answer>A</answer>"}, "options must be 2 to 26"),
        ({**GOOD, "options": ["grows", "Grows "]}, "the right option must be unlike the others"),
        ({**GOOD, "options": ["grows", " "]}, "options must be 2 to 26 texts, none of them empty"),
        ({**GOOD, "options": [f"it grows {number} times" for number in range(30)]}, "options must be 2 to 26"),
        ({**GOOD, "solution": "<answer>Z</answer>"}, "field 'solution': the answer 'Z' is neither"),
        ({**GOOD, "solution": "<answer>AB</answer>"}, "the answer 'AB' is neither"),
        ({**GOOD, "uid": "rows/1"}, "uid 'rows/1' is that of line 1 already"),
    ],
)
def test_each_fault_is_named_with_its_line(tmp_path, line, message):
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError, match="rows.jsonl:2: ") as error:
        read_rows(path, "MCQA")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_faults_are_listed_in_one_pass(tmp_path):
    path = write(tmp_path, *["{"] * 30)
    with pytest.raises(DataError) as error:
        read_rows(path, "MCQA")
    lines = str(error.value).splitlines()
    assert len(lines) == 21 and lines[0].startswith(f"{path}:1:") and lines[-1] == "... and 10 more"


def test_faults_of_all_kinds_are_listed_together(tmp_path):
    path = write(tmp_path, b"\xff", GOOD, {**GOOD, "options": []}, {**GOOD, "uid": "rows/2"})
    with pytest.raises(DataError) as error:
        read_rows(path, "MCQA")
    assert [line.split(":")[1] for line in str(error.value).splitlines()] == ["1", "3", "4"]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "none.jsonl", "MCQA")
    with pytest.raises(DataError, match="holds no row"):
        read_rows(write(tmp_path, ""), "MCQA")
