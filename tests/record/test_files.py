"""metrics.jsonl, the picture drawn from it, and the rows of completions."""

import base64
import json
import re

import pytest
from matplotlib.figure import Figure

from tests.conftest import random_clip
from tests.record.builders import group
from vidbridge.diagnostics.picture import draw_diagnosis
from vidbridge.record.clips import seen_clips, write_clips
from vidbridge.record.completions import COLUMNS, completion_rows
from vidbridge.record.curves import draw_curves
from vidbridge.record.metrics_file import series
from vidbridge.record.page import MAX_EMBEDDED_BYTES, MAX_GROUPS, write_page
from vidbridge.runtime.jsonl_log import append_lines, read_lines


def rows_of(step, *groups, **options):
    return completion_rows(step, groups, seen_clips(groups), **options)


def test_lines_come_back_as_written_and_what_is_not_finite_is_a_gap(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [{"step": 1, "a": 0.5, "b": float("nan"), "c": float("inf")}])
    append_lines(path, [{"step": 2, "a": 1.0}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_lines(path)
    assert read_lines(path)[0] == {"step": 1, "a": 0.5, "b": None, "c": None}
    assert series(read_lines(path), "a") == ([1, 2], [0.5, 1.0])
    assert series(read_lines(path), "b") == ([], [])


def test_any_text_stays_on_its_line(tmp_path):
    line = {"completion": "it\u2028grows\x85and\u2029spins\x0c\x1d\r\n"}
    append_lines(tmp_path / "completions.jsonl", [line])
    assert read_lines(tmp_path / "completions.jsonl") == [line]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, by file name."""
    saved, write = {}, Figure.savefig

    def save(figure, path, **options):
        saved[path.name] = figure
        write(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def panel(figure, title):
    """The lines of one panel by label: (steps, values); those of the trend come before their faint selves."""
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()[::2]}


@pytest.mark.filterwarnings("error")
def test_curves_show_each_panel_that_there_is_something_for(tmp_path, figures):
    grpo = [{"step": step, "reward/qa/total": 0.1 * step, "policy/entropy": 2.0} for step in range(3)]
    held_out = [{"step": 0, "held_out/sampled/mean": 0.2}, {"step": 2, "held_out/sampled/mean": 0.4}]
    draw_curves(grpo + held_out, tmp_path / "grpo.png")
    draw_curves([{"step": 1, "sft/loss": 3.0}], tmp_path / "sft.png")
    assert [axes.get_title() for axes in figures["grpo.png"].axes] == [
        "training reward by task", "held-out score / maximum", "entropy of what is learnt from, nats a token"
    ]  # fmt: skip
    assert panel(figures["grpo.png"], "training reward by task") == {"qa": ([0, 1, 2], [0.0, 0.1, 0.2])}
    assert panel(figures["grpo.png"], "held-out score / maximum") == {"sampled": ([0, 2], [0.2, 0.4])}
    assert list(panel(figures["sft.png"], "supervised loss").values()) == [([1], [3.0])]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in figures)


@pytest.mark.filterwarnings("error")
def test_the_diagnosis_shows_cosines_and_what_was_seen_of_each_task(tmp_path, figures):
    lines = [{"step": 1, "gradient/cosine/caption/qa": -0.2, "gradient/norm/qa": 1.0, "entropy/qa/answer": 0.1}]
    lines += [{"step": 2, "gradient/cosine/caption/qa": 0.3, "gradient/cosine/qa/qa": 0.9, "val/sampled/qa": 0.5}]
    draw_diagnosis(lines, tmp_path / "looked.png")
    figure = figures["looked.png"]
    assert panel(figure, "entropy of the answer, nats a token") == {"qa": ([1], [0.1])}
    # caption and qa: (-0.2 + 0.3) / 2, and 0.5 / sqrt(2) / sqrt(2) = 0.25 of standard error; qa with itself: one look
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.05\n±0.25", "0.90"]
    draw_diagnosis([{"step": 1, "policy/entropy": 0.1}], tmp_path / "not.png")
    assert not (tmp_path / "not.png").exists()


def test_a_completion_row_says_what_was_asked_written_and_earned():
    (first, second) = rows_of(3, group(totals=(1.0, 0.0)), advantages=[[0.5, -0.5]])
    assert tuple(first) == (*COLUMNS, "group", "clips")
    assert (first["step"], first["task"], first["completion"]) == (3, "qa", "answer 0")
    assert (first["total"], first["gates"], first["terms"]) == (1.0, {"format": 1.0}, {"choice": 1.0})
    assert (second["total"], second["advantage"], second["stage"]) == (0.0, -0.5, "training")


def test_an_unscored_group_has_rows_without_reward():
    (row,) = rows_of(1, group(totals=()))
    assert row["total"] is None and row["terms"] == {}


def test_the_page_embeds_small_clips_links_large_ones_and_escapes_what_the_policy_wrote(tmp_path):
    clips = [random_clip(4, 16, 16), random_clip(16, 256, 256)]
    groups = [group(totals=(1.0, 0.25), clips=clips), group(totals=())]
    (small, large), _ = seen = seen_clips(groups)
    write_clips([small, large], tmp_path)
    assert len(small.content) <= MAX_EMBEDDED_BYTES < len(large.content)
    rows = completion_rows(1, groups[:1], seen, advantages=[[0.71, -0.71]]) + completion_rows(2, groups[1:], seen[1:])
    rows[0]["completion"] = "<script>alert(1)</script>"
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        write_page(rows, folder / "completions.html", run_dir=tmp_path)
        page = (folder / "completions.html").read_text()
        assert page.count("<section") == 2 and page.count("<video") == 2  # none of the group that had no clip
        assert f"src='data:video/mp4;base64,{base64.b64encode(small.content).decode()}'" in page
        (linked,) = re.findall("src='([^d][^']*)'", page)
        assert (folder / linked).read_bytes() == large.content
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<figcaption>0.25-1.75 s: no/such.mkv</figcaption>" in page
    assert "0.25" in page and "unscored" in page and "format 1.00, choice 1.00" in page
    assert "<article class='up'><div class='earned'><b>reward 1.00</b><span>advantage +0.71</span>" in page
    assert page.index("step 2, training") < page.index("step 1, training")  # the newest first


def test_a_run_that_wrote_no_clips_still_has_a_page_and_its_videos_are_not_opened(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"not of this run")
    (new,) = rows_of(0, group(totals=(1.0,)))
    old = {name: new[name] for name in COLUMNS} | {"video": str(tmp_path / "secret.mp4")}
    write_page([old, {**old, "total": 0.0}], tmp_path / "completions.html", run_dir=tmp_path)
    page = (tmp_path / "completions.html").read_text()
    assert page.count("<section") == 1 and page.count("<article") == 2
    assert "src='secret.mp4'" in page and "data:video" not in page


def test_the_same_item_twice_in_a_step_is_two_sections(tmp_path):
    rows = rows_of(1, group(totals=(1.0, 0.0)), group(totals=(1.0, 0.0)))
    write_page(rows, tmp_path / "completions.html", run_dir=tmp_path)
    assert (tmp_path / "completions.html").read_text().count("<section") == 2


def test_the_same_item_sampled_and_greedy_is_two_sections(tmp_path):
    rows = [row for stage in ("a", "b") for row in rows_of(0, group(totals=(1.0,)), stage=stage)]
    rows[0]["completion"] = "<think>it is & red</think><answer>B</answer>"
    write_page(rows, tmp_path / "completions.html", run_dir=tmp_path)
    page = (tmp_path / "completions.html").read_text()
    assert page.count("<section") == 2
    assert "<div class='text thinking' dir='auto'>it is &amp; red</div><div class='text ' dir='auto'>B</div>" in page


def test_a_text_on_the_page_keeps_its_lines_and_its_direction_to_itself(tmp_path):
    (row,) = rows_of(0, group(totals=(1.0,)))
    row |= {"completion": "one\n  two \u202e", "finished": False}
    write_page([row], tmp_path / "completions.html", run_dir=tmp_path)
    page = (tmp_path / "completions.html").read_text()
    assert ".text { white-space: pre-wrap; }" in page
    assert "<div class='text ' dir='auto'>one\n  two \u202e</div></div><b>(cut)</b>" in page  # what is ours is outside


def test_the_page_stays_small_and_says_what_it_leaves_out(tmp_path):
    few = rows_of(0, group(totals=(1.0,)))
    rows = [{**row, "step": step} for step in range(MAX_GROUPS + 3) for row in few]
    write_page(rows[3:], tmp_path / "all.html", run_dir=tmp_path)
    write_page(rows, tmp_path / "newest.html", run_dir=tmp_path)
    assert (tmp_path / "all.html").read_text().count("<section") == MAX_GROUPS
    assert "groups; all are in" not in (tmp_path / "all.html").read_text()
    page = (tmp_path / "newest.html").read_text()
    assert page.count("<section") == MAX_GROUPS and f"The newest {MAX_GROUPS} of {MAX_GROUPS + 3} groups" in page
    assert "step 3, training" in page and "step 2, training" not in page


def test_the_video_of_an_old_run_is_linked_whatever_its_name_is_made_of(tmp_path):
    (row,) = rows_of(0, group(totals=(1.0,)))
    del row["clips"]
    row |= {"uid": "a\udce9", "video": str(tmp_path / "a 50% #1'\udce9.mp4")}
    write_page([row], tmp_path / "completions.html", run_dir=tmp_path)
    assert "src='a%2050%25%20%231%27%E9.mp4'" in (tmp_path / "completions.html").read_text()
