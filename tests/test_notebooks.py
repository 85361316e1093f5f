"""Every notebook runs from top to bottom."""

import json

import pytest

from tests.conftest import random_clip
from tests.doors import ROOT, run
from tests.record.builders import group
from tests.test_ablations import study_in, write_results
from vidbridge.evaluation.items import item_row
from vidbridge.record.clips import seen_clips, write_clips
from vidbridge.record.completions import completion_rows
from vidbridge.runtime.jsonl_log import append_lines

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAYS = {
    "02_read_completions": ["0.062-1.688 s: no/such.mkv", "qa: 0 items earn more, 0 less, 1 the same"],
    "04_ablation_table": ["Difference to all four, greedy"],
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    written = group(totals=(1.0, 0.0), clips=[random_clip(14, 16, 16, fps=8.0)])
    seen = seen_clips([written])
    write_clips(seen[0], tmp_path)
    append_lines(tmp_path / "completions.jsonl", completion_rows(1, [written], seen))
    for when in ("before", "after"):
        append_lines(tmp_path / "items.jsonl", [{"when": when, "kind": "greedy", **item_row(written)}])
    study_in(tmp_path)
    write_results(tmp_path / "results" / "study")
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "commit notebooks without outputs"
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    places = {"VIDBRIDGE_CACHE": str(tmp_path), "VIDBRIDGE_OUTPUTS": str(tmp_path)}
    done = run(script, **places, VIDBRIDGE_STUDY=str(tmp_path / "study.yaml"))
    assert done.returncode == 0, done.stderr
    if path.stem in SAYS:
        assert all(word in done.stdout for word in SAYS[path.stem])
    else:
        assert any(word in done.stdout for word in ("reference", "<answer>"))
