"""Files of benchmarks as they are published, and what is wrong with them."""

import json

import pytest

from tests.composing import evaluation
from vidbridge.data.formats.benchmark_file import BenchmarkFile
from vidbridge.errors import DataError, NoRows
from vidbridge.runtime import launch
from vidbridge.tasks.caption import Caption
from vidbridge.tasks.qa import QA
from vidbridge.text.options import read_option
from vidbridge.types import VideoRef

QUESTION = {"id": "1", "video": "a.mp4", "question": "What next?", "answer": "B"}
QUESTION["options"] = ["grows", "spins", "hides"]
DEFAULTS = {"id": "{id}", "prompt": "{question}", "options": "options", "answer": "answer", "video": "{video}"}


def read(tmp_path, *rows, task=QA(), name="file.jsonl", **changes):
    text = "".join(json.dumps(row) + "\n" for row in rows) if name.endswith(".jsonl") else json.dumps(rows)
    (tmp_path / name).write_text(text)
    settings = {**DEFAULTS, "file": str(tmp_path / name), "root": str(tmp_path), **changes}
    return BenchmarkFile(**settings).rows(task, "test")


def test_json_lines_and_a_json_list_are_the_same_rows(tmp_path):
    (row,) = read(tmp_path, QUESTION)
    assert (row.uid, row.problem, row.answer, row.video) == ("1", "What next?", "B", "a.mp4")
    assert row.options == ("grows", "spins", "hides") and row.meta["sources"] == ["a.mp4"]
    assert read(tmp_path, QUESTION, name="file.json") == [row]


@pytest.mark.parametrize(
    "answer, answer_is, letter",
    [("C", "letter", "C"), ("C. hides", "letter", "C"), (0, "index", "A"), ("2", "index", "C"), ("spins", "text", "B")],
)
def test_an_answer_is_a_letter_an_index_or_the_text_of_an_option(answer, answer_is, letter, tmp_path):
    (row,) = read(tmp_path, {**QUESTION, "answer": answer}, answer_is=answer_is)
    assert row.answer == letter


@pytest.mark.parametrize(
    "options",
    [
        ["A. grows", "B. spins"], {"B": "spins", "A": "grows"}, ["grows", "spins", "N/A"], ["(A) grows", "(B) spins"],
        ["grows", "spins", None, ""],
    ],
)
def test_options_come_without_letters_and_without_what_fills_their_places(options, tmp_path):
    (row,) = read(tmp_path, {**QUESTION, "options": options}, no_option=["", "N/A"])
    assert row.options == ("grows", "spins")


def test_an_option_that_starts_with_a_letter_keeps_it(tmp_path):
    options = ["A man", "Bread", "C. elegans"]
    assert read(tmp_path, {**QUESTION, "options": options})[0].options == tuple(options)


def test_options_in_fields_of_their_own_and_bounds_and_categories(tmp_path):
    row = {"id": 1, "video": "a", "question": "?", "a0": "x", "a1": "y", "answer": 1, "from": 2, "to": 5.5}
    (read_row,) = read(
        tmp_path,
        {**row, "metadata": {"subject": "Art"}, "words": "Hello."},
        options=["a0", "a1"],
        answer_is="index",
        video="{video}.mp4",
        start_s="from",
        end_s="to",
        categories=["metadata.subject"],
        subtitle="words",
    )
    assert read_row.options == ("x", "y") and read_row.answer == "B" and read_row.uid == "1"
    assert read_row.shown == VideoRef(path="a.mp4", start_s=2.0, end_s=5.5)
    assert read_row.meta["categories"] == {"metadata.subject": "Art"}
    assert read_row.problem == "Subtitles: Hello.\n?"


def test_a_csv_with_a_map_of_videos_as_next_qa_has_it(tmp_path):
    (tmp_path / "test.csv").write_text('video,question,answer,qid,type,a0,a1\n77,"why, then",1,3,CW,fun,rain\n')
    (tmp_path / "map.json").write_text('{"77": "0101/77"}')
    settings = {**DEFAULTS, "id": "{video} {qid}", "video": "{video}.mp4"}
    settings |= {"options": ["a0", "a1"], "answer_is": "index"}
    data = BenchmarkFile(
        file=str(tmp_path / "test.csv"), root=str(tmp_path), video_names=str(tmp_path / "map.json"), **settings
    )
    (row,) = data.rows(QA(), "test")
    assert (row.uid, row.problem, row.answer, row.video) == ("77 3", "why, then", "B", "0101/77.mp4")


def test_many_files_each_with_its_folder_and_rows_of_one_kind_alone(tmp_path):
    for name in ("one", "two", "other"):
        (tmp_path / f"{name}.json").write_text(json.dumps([QUESTION, {**QUESTION, "id": "2", "kind": "open"}]))
    settings = {**DEFAULTS, "id": "{file} {id}", "video": "{folder}/{video}"}
    data = BenchmarkFile(
        file=str(tmp_path / "*.json"), root=str(tmp_path), folders={"one": "x", "two": "y/z"}, **settings
    )
    assert [row.video for row in data.rows(QA(), "test")] == ["x/a.mp4", "x/a.mp4", "y/z/a.mp4", "y/z/a.mp4"]
    with pytest.raises(DataError, match="row 1: field 'kind' is missing"):
        BenchmarkFile(**{**vars(data), "only": {"kind": "open"}}).rows(QA(), "test")


def test_captions_have_no_options(tmp_path):
    (row,) = read(
        tmp_path, {"id": "1", "video": "a.mp4", "caption": " it grows "},
        task=Caption(), prompt="Describe.", options=None, answer="caption",
    )
    assert (row.problem, row.answer, row.options, row.problem_type) == ("Describe.", "it grows", (), "caption")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer": "E"}, "file.jsonl:1: field 'answer': the answer 'E' is neither an option nor its letter"),
        ({"options": "grows"}, "field 'options': expected a list of texts, found 'grows'"),
        ({"options": ["grows"], "answer": "A"}, "options must be 2 to 26 texts"),
        ({"options": ["grows", "", "spins"]}, "an option is empty before the last one, found ['grows', '', 'spins']"),
        ({"options": {"B": "grows", "C": "spins"}}, "field 'options': expected the keys A, B, .., found B, C"),
        ({"question": None}, "file.jsonl:1: field 'question' is null"),
        ({"answer": None}, "field 'answer': the answer '' is neither an option nor its letter"),
        ({"video": None}, None),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(change, message, tmp_path):
    if message is None:
        with pytest.raises(DataError, match=r"file.jsonl:1: field 'video' is missing; there are id, question"):
            read(tmp_path, {name: value for name, value in QUESTION.items() if name != "video"})
        return
    with pytest.raises(DataError) as error:
        read(tmp_path, {**QUESTION, **change})
    assert message in str(error.value)


def test_all_bad_rows_are_listed_at_once(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path, QUESTION, {**QUESTION, "answer": "Z", "id": "2"}, QUESTION)
    assert "file.jsonl:2: field 'answer': the answer 'Z'" in str(error.value)
    assert "file.jsonl:3: id '1' is that of" in str(error.value)


@pytest.mark.parametrize(
    "change, answer, message",
    [
        ({"answer_is": "index"}, 3, "field 'answer' must be a number from 0 to 2, found 3"),
        ({"answer_is": "number"}, 0, "field 'answer' must be a number from 1 to 3, found 0"),
        ({"answer_is": "text"}, "runs", "neither an option"),
    ],
)
def test_an_index_or_a_text_of_no_option_is_refused(change, answer, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(tmp_path, {**QUESTION, "answer": answer}, **change)


def test_bad_rows_are_left_out_and_listed_when_that_is_asked_for(tmp_path, capsys):
    rows = [QUESTION, {**QUESTION, "id": "2", "options": ["grows", "spins", "Spins "]}, {**QUESTION, "id": "3"}]
    with pytest.raises(DataError, match="benchmark.data.skip_bad_rows=true leaves them out"):
        read(tmp_path, *rows)
    assert [row.uid for row in read(tmp_path, *rows, skip_bad_rows=True)] == ["1", "3"]
    said = capsys.readouterr().err
    assert "left out, 1 rows:\n" in said and "file.jsonl:2: 2: the right option must be unlike" in said


def test_an_index_that_a_table_made_a_float_of(tmp_path):
    assert read(tmp_path, {**QUESTION, "answer": 1.0}, answer_is="index")[0].answer == "B"
    with pytest.raises(DataError, match="a number from 0 to 2, found 1.5"):
        read(tmp_path, {**QUESTION, "answer": 1.5}, answer_is="index")


@pytest.mark.parametrize("caption", [None, 3, ["a", "b"]])
def test_a_caption_is_a_text(caption, tmp_path):
    row = {"id": "1", "video": "a.mp4", "caption": caption}
    with pytest.raises(DataError, match="file.jsonl:1: field 'caption' must be a text, found"):
        read(tmp_path, row, task=Caption(), prompt="Describe.", options=None, answer="caption")


def test_a_template_names_fields_inside_of_others_and_the_number_of_the_row(tmp_path):
    nested = {**QUESTION, "meta": {"clip": 7}, "a.b": "c"}
    (first, second) = read(tmp_path, nested, nested, id="{file} {row} {a.b}", video="{meta.clip:03d}.mp4")
    assert (first.uid, second.uid, first.video) == ("file 1 c", "file 2 c", "007.mp4")
    with pytest.raises(DataError, match="field 'meta.clip.real' is missing"):  # fields, not attributes
        read(tmp_path, nested, video="{meta.clip.real}.mp4")
    own = {**QUESTION, "file": "b.mp4"}
    assert read(tmp_path, own, video="{file}")[0].video == "b.mp4"


@pytest.mark.parametrize("name", ["file.jsonl", "file.json", "test.csv"])
def test_a_byte_order_mark_and_the_line_ends_of_windows_change_nothing(name, tmp_path):
    text = "id,video,question,answer,a0,a1\n1,a.mp4,what é?,B,grows,spins\n"
    if name != "test.csv":
        row = {"id": "1", "video": "a.mp4", "question": "what é?", "answer": "B", "a0": "grows", "a1": "spins"}
        text = json.dumps(row, ensure_ascii=False) + "\n" if name == "file.jsonl" else json.dumps([row], indent=1)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    settings = {**DEFAULTS, "options": ["a0", "a1"], "file": str(tmp_path / name), "root": str(tmp_path)}
    (row,) = BenchmarkFile(**settings).rows(QA(), "test")
    assert (row.uid, row.problem, row.answer, row.options) == ("1", "what é?", "B", ("grows", "spins"))


@pytest.mark.parametrize("line", ["1,a.mp4,why, then,B,grows,spins", "1,a.mp4,why,B,gro"])
def test_a_csv_line_of_more_or_fewer_fields_than_its_header_is_refused(line, tmp_path):
    (tmp_path / "test.csv").write_text(f"id,video,question,answer,a0,a1\n{line}\n")
    settings = {**DEFAULTS, "options": ["a0", "a1"], "file": str(tmp_path / "test.csv"), "root": str(tmp_path)}
    with pytest.raises(DataError, match="test.csv: .*line 2: . fields under a header of 6"):
        BenchmarkFile(**settings).rows(QA(), "test")


def test_a_file_name_with_brackets_is_no_pattern_and_parquet_is_told_what_to_do_with(tmp_path):
    assert len(read(tmp_path, QUESTION, name="qa[1].jsonl")) == 1
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="make JSON lines of it: pandas.read_parquet"):
        BenchmarkFile(**DEFAULTS, file=str(tmp_path / "test.parquet"), root=str(tmp_path)).rows(QA(), "test")


def test_files_that_are_none(tmp_path):
    settings = {**DEFAULTS, "root": str(tmp_path)}
    with pytest.raises(DataError, match="there is no such file"):
        BenchmarkFile(file=str(tmp_path / "no.jsonl"), **settings).rows(QA(), "test")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(DataError, match="neither JSON lines"):
        BenchmarkFile(file=str(tmp_path / "bad.jsonl"), **settings).rows(QA(), "test")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match="row 1: expected a JSON object, found int"):
        BenchmarkFile(file=str(tmp_path / "list.json"), **settings).rows(QA(), "test")
    with pytest.raises(NoRows, match="no train rows"):
        BenchmarkFile(file=str(tmp_path / "list.json"), **settings).rows(QA(), "train")
    with pytest.raises(ValueError, match="answer_is must be one of letter, index, number, text"):
        BenchmarkFile(file="x", **settings, answer_is="word")


# One row of each benchmark, with the fields that the pages named in conf/benchmark/*.yaml give.
PUBLISHED = {
    "video_mme": {
        "video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "x", "url": "https://..",
        "videoID": "fFj", "question_id": "001-1", "task_type": "Counting", "question": "How many?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C",
    },
    "longvideobench": {
        "video_id": "86", "id": "86_0", "video_path": "86.mp4", "subtitle_path": "86_en.json", "correct_choice": 1,
        "question": "What?", "candidates": ["one", "two", "three", "four"], "level": "L2-Relation",
        "duration": 12.5, "duration_group": 15, "question_category": "S2A", "topic_category": "NP",
    },
    "mvbench": {
        "video": "166583.webm", "question": "What?", "candidates": ["Not sure", "Scattering"], "answer": "Scattering",
    },
    "mmvu": {
        "id": "validation_546", "question_type": "multiple-choice", "metadata": {"subject": "Literature"},
        "video": "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Literature/4.mp4",
        "question": "Which?", "choices": {"A": "1984", "B": "Ulysses", "C": "x", "D": "y", "E": "z"}, "answer": "B",
    },
    "next_qa": {
        "video": "4010069381", "question": "why", "answer": 2, "qid": 6, "type": "CH", "a0": "a", "a1": "b", "a2": "c",
        "a3": "d", "a4": "e",
    },
    "intent_qa": {
        "video_id": "13884124143", "question": "how", "answer": 4, "qid": 1, "type": "CH", "a0": "jump", "a1": "nod",
        "a2": "push", "a3": "play", "a4": "move", "action": "moved", "lemma": "move", "lemma_id": 161,
    },
    "dream_1k": {
        "idx": "DREAM-1K_0", "video_file": "video/0.mp4", "source": "live action", "duration": "9",
        "description": "A man ..",
        "events": "..", "n_subjects": "2", "n_shots": "1", "n_events": "4",
    },
}
READ = {
    "video_mme": ("fFj.mp4", "C", ("One.", "Two.", "Three.", "Four.")),
    "longvideobench": ("86.mp4", "B", ("one", "two", "three", "four")),
    "mvbench": ("ssv2_video/166583.webm", "B", ("Not sure", "Scattering")),
    "mmvu": ("videos/Literature/4.mp4", "B", ("1984", "Ulysses", "x", "y", "z")),
    "next_qa": ("1164/4010069381.mp4", "C", ("a", "b", "c", "d", "e")),
    "intent_qa": ("13884124143.mp4", "E", ("jump", "nod", "push", "play", "move")),
    "dream_1k": ("0.mp4", "A man ..", ()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_as_published_is_read_by_its_yaml(name, tmp_path):
    (tmp_path / "action_antonym.json").write_text(json.dumps([PUBLISHED[name]]))
    (tmp_path / "map.json").write_text('{"4010069381": "1164/4010069381"}')
    changes = [f"benchmark.data.file={tmp_path}/action_antonym.json", f"benchmark.data.root={tmp_path}"]
    if name == "next_qa":
        changes.append(f"benchmark.data.video_names={tmp_path}/map.json")
    node = dict(launch.to_dataclasses(evaluation(f"benchmark={name}", *changes)).benchmark.data)
    del node["_target_"]
    (row,) = BenchmarkFile(**node).rows(Caption() if name == "dream_1k" else QA(), "test")
    assert (row.video, row.answer, row.options) == READ[name]


def test_equal_distractors_of_a_published_file_are_read_and_the_letter_decides(tmp_path):
    text = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    (tmp_path / "test.csv").write_text(text + "10,300,320,240,where is this,2,1,DL,hall,pool,garden,hall,ship\n")
    settings = {**DEFAULTS, "id": "{video} {qid}", "options": ["a0", "a1", "a2", "a3", "a4"], "answer_is": "index"}
    (row,) = BenchmarkFile(file=str(tmp_path / "test.csv"), root=str(tmp_path), **settings).rows(QA(), "test")
    assert row.options == ("hall", "pool", "garden", "hall", "ship") and row.answer == "C"
    replies = {"C": "C", "A": "A", "D. hall": "D", "garden": "C", "It is the hall.": None, "hall": None}
    assert {reply: read_option(reply, row.options) for reply in replies} == replies


@pytest.mark.parametrize(
    "options", ["A. grows\nB. spins\nC. hides", "grows\nspins\nhides", ["1) grows", "2) spins", "3) hides"]]
)
def test_options_in_one_text_and_with_numbers(options, tmp_path):
    assert read(tmp_path, {**QUESTION, "options": options})[0].options == ("grows", "spins", "hides")


def test_options_in_the_question(tmp_path):
    asked = {**QUESTION, "question": "<video>\nWhat next?\n(A) grows\n(B) spins"}
    (row,) = read(tmp_path, asked, options=None)
    assert (row.problem, row.options, row.answer) == ("What next?", ("grows", "spins"), "B")
    with pytest.raises(DataError, match="file.jsonl:1: field 'question' names no options"):
        read(tmp_path, QUESTION, options=None)


@pytest.mark.parametrize("field, value", [("question", "<|video_pad|>?"), ("options", ["a<|im_end|>", "b"])])
def test_a_field_that_spells_a_control_token_is_named(field, value, tmp_path):
    with pytest.raises(DataError, match=f"file.jsonl:1: field '{field}' spells the control token"):
        read(tmp_path, {**QUESTION, field: value})


def test_a_number_counts_from_one(tmp_path):
    assert read(tmp_path, {**QUESTION, "answer": 3}, answer_is="number")[0].answer == "C"
