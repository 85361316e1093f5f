"""The shapes world written down as people annotate videos: plain mp4s, COIN's JSON, questions, the released JSONL."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments.own_videos import captions_entry, coin_entry, question_line
from vidbridge.media.write import write_mp4
from vidbridge.shapes_world import world
from vidbridge.shapes_world.shapes import Shapes
from vidbridge.tasks.base import Task
from vidbridge.text.prompts import option_lines


def export_annotations(folder: Path, number: int, seed: int = 0) -> list[Path]:
    """``videos/``, coin.json, captions.json (as ActivityNet Captions) and questions.jsonl of the same videos."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    coin, captions, questions = {}, {}, []
    for index in range(number):
        scene = world.draw_scene(rng, int(rng.integers(3, 6)))
        source, name = world.describe(scene, rng), f"shape{index}"
        write_mp4(world.render(scene), folder / "videos" / f"{name}.mp4", fps=world.FPS)
        coin[name], captions[name] = coin_entry(source), captions_entry(source)
        questions.append(question_line(f"{name}.mp4", source))
    (folder / "coin.json").write_text(json.dumps({"database": coin}))
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    return [folder / name for name in ("coin.json", "captions.json", "questions.jsonl")]


def export_released(folder: Path, tasks: list[Task], number: int, prefix: str = "") -> Path:
    """Rows of all tasks in one JSONL of the four released fields, options in the text."""
    data = Shapes(root=str(folder / "videos"), seed=3, num_rows={"train": number})
    lines = []
    for task in tasks:
        for row in data.rows(task, "train"):
            options = f"\n{option_lines(row.options)}" if row.options else ""
            lines.append(
                {
                    "problem": f"{row.problem}{options}",
                    "solution": row.solution,
                    "video": prefix + str(Path(row.video).relative_to(folder / "videos")),
                    "problem_type": row.problem_type,
                }
            )
    path = folder / "released.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
