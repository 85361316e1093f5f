"""The paper's table is made of what evaluations lie in a folder."""

import csv
import json

import pytest

from experiments import paper_table


def summary(folder, name, **greedy):
    """``greedy``: {task: {title: value}}, each with an interval of 2 to both sides."""
    numbers = {
        task: {title: {"value": value, "low": value - 2, "high": value + 2} for title, value in titles.items()}
        for task, titles in greedy.items()
    }
    folder.mkdir(parents=True)
    told = {"benchmark": {"name": name, "greedy": numbers}} if name else {"scores": {}}
    (folder / "summary.json").write_text(json.dumps(told))


def test_a_number_stands_in_its_benchmarks_row_and_its_models_column(tmp_path):
    summary(tmp_path / "proxy", None)  # the training run itself
    summary(tmp_path / "proxy-mvbench", "mvbench", qa={"QA accuracy %": 61.25})
    summary(tmp_path / "base-dream_1k", "dream_1k", caption={"caption F1 %": 34.0, "caption recall %": 30.0})
    summary(tmp_path / "proxy-held_out", "held_out", qa={"QA accuracy %": 9.0}, mix_vid_qa={"MixVidQA %": 50.0})
    paper_table.main([str(tmp_path)])
    with (tmp_path / "table.csv").open() as file:
        rows = {(row["benchmark"], row["number"]): row for row in csv.DictReader(file)}
    assert rows["mvbench", "QA accuracy %"]["proxy"] == "61.2 [59.2, 63.2]"
    mvbench = rows["mvbench", "QA accuracy %"]
    assert (mvbench["base"], mvbench["paper, all four"]) == ("", "61.9")
    assert rows["dream_1k", "caption F1 %"]["base"] == "34.0 [32.0, 36.0]"
    assert rows["held_out", "MixVidQA %"]["proxy"] == "50.0 [48.0, 52.0]"
    assert ("held_out", "QA accuracy %") not in rows


def test_a_folder_without_an_evaluation_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        paper_table.main([str(tmp_path)])
    assert f"{tmp_path} holds no evaluation" in capsys.readouterr().err
