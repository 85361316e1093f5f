"""A whole record: files, plain lines, and W&B offline without a key and without a network."""

import io
import json

import pytest
from rich.console import Console as RichConsole

from tests.conftest import random_clip
from tests.record.builders import group
from vidbridge.record import wandb_sink
from vidbridge.record.console import Console
from vidbridge.record.tracker import SilentTracker, Tracker, headline
from vidbridge.record.wandb_sink import WandbSink, mode_by_key
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.types import StepResult

SCORES = {"mean": 0.25, "tasks": {"qa": {"mean": 0.5, "max": 2.0, "n": 2, "low": 0.4, "high": 0.6, "format_frac": 1.0}}}
BOTH = {"sampled": SCORES, "greedy": SCORES}


def record(tmp_path, wandb=None, *, terminal=False, clips=()):
    """Two steps between two evaluations; returns what was printed."""
    out = io.StringIO()
    console = Console(RichConsole(file=out, force_terminal=terminal, width=100))
    with Tracker(tmp_path, console, wandb, completions_every=2, completions_groups=1, hang_s=60) as tracker:
        tracker.start_evaluation("before", 4)(4)
        tracker.scores(0, "held_out/sampled", SCORES)
        tracker.start_steps(2)
        for step in (1, 2):
            groups = (group(totals=(1.0, 0.0), clips=clips), group(totals=()))
            tracker.step(step, StepResult(metrics={"policy/lr": 0.1 * step}, groups=groups))
        tracker.finish({"before": BOTH, "after": BOTH, "train_s": 1.0})
    return out.getvalue()


def test_without_a_terminal_there_are_plain_lines_and_a_table(tmp_path):
    printed = record(tmp_path)
    assert "\x1b" not in printed
    (first, second) = [line for line in printed.splitlines() if line.startswith("step ")]
    assert first.startswith("step 1/2  reward 0.50  ") and "tokens/s" in first and first.endswith(" left")
    assert second.startswith("step 2/2") and second.endswith("0:00 left")
    assert "0.50 ±0.10" in printed and "2.00" in printed and "0.250" in printed
    assert f"written to {tmp_path}" in printed and "summary.json" in printed


def test_on_a_terminal_there_is_one_bar_and_no_plain_lines(tmp_path):
    printed = record(tmp_path, terminal=True)
    assert "training" in printed and "\x1b" in printed
    assert not any(line.startswith("step ") for line in printed.splitlines())


def test_the_files_hold_the_run(tmp_path):
    record(tmp_path)
    before, first, second = read_lines(tmp_path / "metrics.jsonl")
    # 0.5 of at most 2.0
    assert before == {"step": 0, "held_out/sampled/mean": 0.25, "held_out/sampled/qa": 0.25}
    assert (first["step"], first["policy/lr"], second["step"]) == (1, 0.1, 2)
    assert first["rollout/tokens_per_s"] > 0
    rows = read_lines(tmp_path / "completions.jsonl")
    assert [row["step"] for row in rows] == [1, 1, 2, 2]  # the first step and every second, one group of two each
    assert json.loads((tmp_path / "summary.json").read_text())["after"] == BOTH
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_wandb_offline_has_the_clips_that_the_model_saw(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    sink = WandbSink(
        run_dir=tmp_path,
        mode="offline",
        project="test",
        group="g",
        job_type="train",
        tags=["proxy"],
        config={"seed": 0},
    )
    printed = record(tmp_path, sink, clips=[random_clip(4, 16, 16), random_clip(3, 16, 24, seed=1)])
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name in printed.replace("\n", "")
    assert len(list(folder.glob("files/media/table/completions/training*.json"))) == 2  # of steps 1 and 2
    kept = {path.read_bytes() for path in (tmp_path / "wandb" / "artifacts").rglob("*") if path.is_file()}
    table = next(table for table in map(json.loads, [each for each in kept if b'"_type": "table"' in each]))
    assert table["columns"][:3] == ["clip", "clip 2", "step"] and len(table["data"]) == 2
    first = dict(zip(table["columns"], table["data"][0]))
    assert first["clip"]["_type"] == "video-file" and first["clip"]["caption"] == "0.25-1.75 s: no/such.mkv"
    assert first["shown"].splitlines() == ["0.25-1.75 s: no/such.mkv", "0.25-1.25 s: no/such.mkv"]
    written = list((tmp_path / "clips").iterdir())
    assert len(written) == 2 and all(path.read_bytes() in kept for path in written)


def test_a_resumed_run_is_the_same_run_in_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    ids = []
    for _ in range(2):
        sink = WandbSink(
            run_dir=tmp_path, mode="offline", project="test", group="g", job_type="train", tags=[], config={}
        )
        tracker = Tracker(tmp_path, Console(), sink, completions_every=0, completions_groups=0, hang_s=60)
        tracker.wandb_id = ids[0] if ids else None  # as a checkpoint kept it
        with tracker:
            tracker.log(len(ids), {"a": 1.0})
        ids.append(tracker.wandb_id)
    assert ids[0] == ids[1]
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(f"-{ids[0]}" in name for name in folders)


def test_the_other_ranks_record_nothing(tmp_path, capsys):
    with SilentTracker(tmp_path, completions_every=1, completions_groups=1, hang_s=60) as tracker:
        tracker.rewind({})
        tracker.start_evaluation("before", 4)(4)
        tracker.scores(0, "held_out/sampled", SCORES)
        tracker.start_steps(1)
        shown = group(totals=(1.0, 0.0), clips=[random_clip(2, 16, 16)])
        tracker.step(1, StepResult(metrics={"policy/lr": 0.1}, groups=(shown,)))
        tracker.finish({"before": BOTH, "after": BOTH})
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "environment, mode",
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_wandb_is_online_only_with_a_key(environment, mode, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mode_by_key() == mode


def test_a_key_in_netrc_counts(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    host = wandb_sink.urlparse(wandb_sink.wandb.Settings().base_url).hostname
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password k\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode_by_key() == "online"


def test_the_headline_of_supervised_fine_tuning_is_its_loss():
    assert headline({"sft/loss": 2.5}, ()) == "loss 2.500"
