"""Plain lines of long jobs: how many, what they say, and that nobody speaks for a job that hangs."""

import io
import time

import pytest
from rich.console import Console as RichConsole

from vidbridge.record.console import Console
from vidbridge.runtime import progress as module
from vidbridge.runtime.progress import Lines, progress, track, waiting


@pytest.fixture
def clock(monkeypatch):
    """Moves a clock by so many seconds."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_a_line_every_half_minute_with_the_rate_and_what_is_left(clock):
    """400 things, two a second: 200 s, so lines at 30, 60, .. 180 s and the last."""
    said = []
    lines = Lines(said.append, "videos", 400)
    for _ in range(400):
        clock(0.5)
        lines.advance(1)
    assert said[:2] == ["videos ..", "videos: 60 of 400, 2 a second, 2:50 left"]
    assert said[2] == "videos: 120 of 400, 2 a second, 2:20 left"
    assert len(said) == 8 and said[-1] == "videos: 400 of 400, 2 a second, 0:00 left"


def test_what_is_quick_says_that_it_begins_and_no_more(clock):
    said = []
    lines = Lines(said.append, "videos", 3)
    for _ in range(3):
        clock(9)
        lines.advance(1)
    assert said == ["videos .."]


def test_work_that_goes_on_without_a_thing_done_is_told_and_one_that_hangs_is_not(clock):
    said = []
    lines = Lines(said.append, "evaluating", 512)
    for _ in range(100):
        clock(1)
        lines.advance(0)
    assert said[1:] == [f"evaluating: 0 of 512 after {after}" for after in ("0:30", "1:00", "1:30")]
    clock(3600)
    assert len(said) == 4


def test_what_was_done_before_is_no_part_of_the_rate(clock):
    """900 of 1000 are known; 10 more in 30 s: 90 are left, 270 s."""
    said = []
    lines = Lines(said.append, "evaluating", 1000, done=900)
    clock(30)
    lines.advance(10)
    assert said[-1] == "evaluating: 910 of 1000, 20 a minute, 4:30 left"


def test_a_resumed_run_says_how_long_its_own_steps_take(clock):
    """Steps 151 and 152 of 200 take 10 s each: 48 more take 480 s, whatever came before."""
    out = io.StringIO()
    console = Console(RichConsole(file=out, width=100))
    console.start_stage("training", 200, 150)
    for step in (151, 152):
        clock(10)
        console.step(step, "")
    assert out.getvalue().splitlines()[-1].split("  ")[-1] == "8:00 left"


def test_things_are_tracked_and_given_on(capsys):
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().out == "letters ..\nletters ..\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda: RichConsole(file=out, force_terminal=True, width=80))
    with progress("letters", 3) as advance:
        advance(3)
    assert "\x1b" in out.getvalue() and "100%" in out.getvalue() and "letters .." not in out.getvalue()


def test_who_waits_says_for_how_long_and_why(monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    said, reasons = [], iter([""])
    with waiting(said.append, lambda: next(reasons, "Connection error.")):
        deadline = time.monotonic() + 30
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said[0].startswith("still waiting after 0:") and "error" not in said[0]
    assert said[1].endswith(": Connection error.")
    count = len(said)
    time.sleep(0.2)
    assert len(said) == count
