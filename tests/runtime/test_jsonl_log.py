"""What a killed command leaves behind, cut at every byte."""

import json

import pytest

from vidbridge.runtime.jsonl_log import append_lines, read_lines, resumed_lines, whole_lines

LINES = [{"uid": "a/0", "scores": [0.5, 1.0]}, {"uid": "ä/1", "text": "two\u2028lines\n"}]
TEXT = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES).encode()


@pytest.mark.parametrize("end", range(len(TEXT) + 1))
def test_it_goes_on_after_the_last_whole_line(tmp_path, end):
    path = tmp_path / "done.jsonl"
    path.write_bytes(TEXT[:end])
    known = resumed_lines(path)
    assert known == LINES[: TEXT[:end].count(b"\n")]
    append_lines(path, LINES[len(known) :])
    assert path.read_bytes() == TEXT and read_lines(path) == LINES


def test_nothing_yet(tmp_path):
    assert resumed_lines(tmp_path / "done.jsonl") == []


def test_a_name_that_is_no_unicode_comes_back(tmp_path):
    lines = [{"video": b"caf\xe9.mp4".decode("utf-8", "surrogateescape"), "text": "\ud800"}]
    append_lines(tmp_path / "bad.jsonl", lines)
    assert read_lines(tmp_path / "bad.jsonl") == lines


def test_a_line_that_is_damaged_is_named(tmp_path):
    (tmp_path / "items.jsonl").write_bytes(b'{"a": 1}\n\x00\x00\n{"a": 2}\n')
    with pytest.raises(ValueError, match="items.jsonl:2 is damaged"):
        whole_lines(tmp_path / "items.jsonl")
