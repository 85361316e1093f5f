"""What a killed command leaves behind, cut at every byte."""

import json

import pytest

from vidbridge.data import journal

LINES = [{"uid": "a/0", "scores": [0.5, 1.0]}, {"uid": "ä/1", "text": "two\u2028lines\n"}]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.mark.parametrize("end", range(len(TEXT) + 1))
def test_it_goes_on_after_the_last_whole_line(tmp_path, end):
    path = tmp_path / "done.jsonl"
    path.write_bytes(TEXT[:end])
    known = journal.read(path)
    assert known == LINES[: TEXT[:end].count(b"\n")]
    journal.append(path, LINES[len(known) :])
    assert path.read_bytes() == TEXT and journal.read(path) == LINES


def test_nothing_yet(tmp_path):
    assert journal.read(tmp_path / "done.jsonl") == []
