"""Every notebook runs from top to bottom."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.track.builders import group
from vidbridge.track.completions import completion_rows
from vidbridge.track.metrics_file import append_line

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    for row in completion_rows(1, [group(totals=(1.0, 0.0))]):
        append_line(tmp_path / "completions.jsonl", row)
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "commit notebooks without outputs"
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    places = {"VIDBRIDGE_CACHE": str(tmp_path), "VIDBRIDGE_OUTPUTS": str(tmp_path), "MPLBACKEND": "agg"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **places}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout or "<answer>" in done.stdout
