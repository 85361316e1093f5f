"""Images beside videos from the command line: looked at, trained on, evaluated."""

import json

import pytest
from PIL import Image

from tests import doors
from tests.data.exporting import export_annotations
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.types import VideoRef

FIRST_AND_LAST = FrameBudget(fps=None, max_frames=2, min_pixels=1, max_pixels=10**6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Of each video the first and the last picture too: rows with one image, with two, with one beside the video."""
    folder = tmp_path_factory.mktemp("mixed")
    coin, _, questions = export_annotations(folder, 24)
    rows = []
    for number, row in enumerate(map(json.loads, questions.read_text().splitlines())):
        names = [f"{number}_first.png", f"{number}_last.jpg"]
        frames = decode(VideoRef(path=str(folder / "videos" / row["video"])), FIRST_AND_LAST).frames
        for name, pixels in zip(names, frames, strict=True):
            Image.fromarray(pixels).save(folder / "videos" / name)
        video = row.pop("video")
        shown = ({"video": video}, {"image": names[0]}, {"images": names}, {"images": names[:1], "video": video})
        rows.append({**row, **shown[number % 4]})
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"data.root={folder}/videos", f"data.annotations=[{coin},{questions}]", "data.held_out_frac=0.2"]
    return ["data=raw", *options, "data.workers=1"]


def test_check_counts_them(data, tmp_path):
    done = doors.run(doors.ROOT / "build_data.py", "check", *data, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "check.json").read_text())
    assert (summary["videos"], summary["images"], summary["unusable_samples"]) == (24, 6 + 12 + 6, 0)


@pytest.mark.slow
def test_they_are_trained_on_and_evaluated(data, tmp_path):
    options = [*data, "debug=smoke", "prompts_per_step=8", "track=wandb", f"hydra.run.dir={tmp_path}/run"]
    options += ["task=[qa,caption]", "task_mix=naive", "track.completions_every=1", "track.completions_groups=8"]
    done = doors.run(doors.ROOT / "train.py", *options, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    learnt = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "policy/loss" in line]
    assert len(learnt) == 2 and all(line["data/bad"] == 0 for line in learnt)
    rows = [row for row in read_lines(tmp_path / "run" / "completions.jsonl") if row["stage"] == "training"]
    kinds = {tuple(clip["path"].rsplit(".")[-1] for clip in row["clips"]) for row in rows}
    assert kinds == {("mp4",), ("png",), ("png", "png"), ("png", "mp4")}
    again = [f"checkpoint={tmp_path}/run", f"hydra.run.dir={tmp_path}/again"]
    done = doors.run(doors.ROOT / "evaluate.py", *again, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "again" / "summary.json").read_text())["scores"]
    assert scores == json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
