"""experiments/gpu_day.sh without a GPU: what it says, what it keeps when parts fail, and that it ends in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import gpu_day
from experiments.gpu_day import Part

ROOT = Path(__file__).parents[1]
DEVICE = {
    "name": "a GPU", "memory_gb": 80.0, "cuda": "13", "torch": "2", "transformers": "5", "python": "3", "driver": "5"
}  # fmt: skip
BENCH = """
import json, sys
path = sys.argv[sys.argv.index("--json") + 1]
rows = [{"part": "learner", "mfu": 0.4321, "flops": {}}, {"part": "step", "failed": "no memory"}]
json.dump({"rows": rows}, open(path, "w"))
sys.exit(1)
"""
TESTS = """
import pytest, time

def test_well(record_property):
    record_property("gap", 0.5)

def test_badly():
    assert 1 == 2

@pytest.mark.skip(reason="not here")
def test_not_at_all():
    pass

def test_for_ever():
    time.sleep(1000)
"""


def test_without_a_gpu_it_says_what_it_would_run(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "experiments" / "gpu_day.sh"), "out", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    no_device, *lines = done.stdout.splitlines()
    assert "no CUDA device" in no_device
    assert [line.split(",")[0] for line in lines] == [f"skipped: {name}" for name in gpu_day.PARTS]
    assert not list(tmp_path.iterdir())


def test_it_ends_within_nine_minutes_and_names_files_that_are_there():
    assert sum(part.limit_s for part in gpu_day.PARTS.values()) <= 540
    named = {part.arguments[-1] for part in gpu_day.PARTS.values() if not part.bench}
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py")}


def test_with_a_gpu_a_dry_run_is_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_day, "describe", lambda: DEVICE)
    assert gpu_day.main([str(tmp_path / "out"), "--dry-run", "--only", "bench", "--seconds", "30"]) == 0
    device, line = capsys.readouterr().out.splitlines()
    assert device == "device: a GPU" and line.startswith("would run: bench") and "at most 30 s" in line
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(gpu_day.PACKAGES, "no_such_module", "no-such-package")
    assert gpu_day.main([]) == 2
    assert "no-such-package" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        gpu_day.main(["--only", "bench,attentoin"])
    assert stop.value.code == 2 and "no such part: attentoin" in capsys.readouterr().err


def test_a_part_that_fails_or_hangs_costs_no_other(monkeypatch, tmp_path, capsys):
    """One ends well, one fails after its bench has written, one hangs in a test with the others' results told."""
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ("-p", "experiments.gpu_day", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    parts = {
        "well": Part(what="ends well", limit_s=60, arguments=("-c", "print('said')")),
        "bench": Part(what="fails", limit_s=60, arguments=("-c", BENCH), bench=True),
        "hangs": Part(what="hangs", limit_s=15, arguments=("-m", "pytest", *options, str(tmp_path / "test_some.py"))),
    }
    monkeypatch.setattr(gpu_day, "PARTS", parts)
    monkeypatch.setattr(gpu_day, "describe", lambda: DEVICE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "out"
    began = time.monotonic()
    assert gpu_day.main([str(out), "--only", "well"]) == 0
    # the third may take what the second leaves
    assert gpu_day.main([str(out), "--only", "bench,hangs", "--seconds", "40"]) == 1
    assert time.monotonic() - began < 120
    found = json.loads((out / "gpu_day.json").read_text())
    assert found["device"] == DEVICE
    well, bench, hangs = (found["parts"][name] for name in parts)
    assert well["status"] == "passed" and (out / "well.log").read_text() == "said\n"
    assert bench["status"] == "failed (exit status 1)" and bench["bench"]["rows"][0]["mfu"] == 0.4321
    assert hangs["status"].startswith("out of time")
    assert [(test["test"].split("::")[1], test["outcome"]) for test in hangs["tests"]] == [
        ("test_well", "passed"), ("test_badly", "failed"), ("test_not_at_all", "skipped")
    ]  # fmt: skip
    assert hangs["tests"][0]["figures"] == {"gap": 0.5} and "not here" in hangs["tests"][2]["message"]
    table = (out / "gpu_day.md").read_text()
    for line in ("| learner | mfu | 0.4321 |", "| step | failed | no memory |", "test_some.py::test_badly | failed |"):
        assert line in table
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.log", "gpu_day.json", "gpu_day.md", "hangs.log", "well.log"
    ]  # fmt: skip
