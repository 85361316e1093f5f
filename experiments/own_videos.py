"""A folder as people have them, to try "Your own videos" of the README: ``python -m experiments.own_videos data/own``.

``data/own/videos``: short clips of moving shapes in four containers, codecs and sizes, one a download that broke off.
Beside them what happens, in the three forms that data=raw reads: steps of half the videos as COIN has them, of the
other half as ActivityNet Captions has them, and questions and captions of all in JSONL. The words are those that the
embedded model knows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidbridge.shapes_world import world
from vidbridge.tasks.sources import Source
from vidbridge.types import Clip

CODECS = {".mp4": "libx264", ".mkv": "libx265", ".mov": "mpeg4", ".webm": "libvpx-vp9"}
NUMBER = 48
BROKEN = 8  # an .mp4, whose index comes last: without its end it cannot be opened


def make(folder: Path, number: int = NUMBER, seed: int = 0) -> list[Path]:
    """Fill ``folder``; returns the three files of annotations. FileExistsError when there are videos already."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    coin: dict[str, Any] = {}
    captions: dict[str, Any] = {}
    questions = []
    for index in range(number):
        scene = world.draw_scene(rng, num_events=3 + index % 3)
        source = world.describe(scene, rng)
        suffix = list(CODECS)[index % len(CODECS)]
        name = f"clip{index:03d}{suffix}"
        write_video(enlarged(world.render(scene), 2 + index % 5), folder / "videos" / name, CODECS[suffix])
        if index // len(CODECS) % 2:  # so that either has all containers
            coin[name] = coin_entry(source)
        else:
            captions[name] = captions_entry(source)
        questions.append(question_line(name, source))
        if index == BROKEN:
            path = folder / "videos" / name
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    files = [folder / name for name in ("coin.json", "captions.json", "questions.jsonl")]
    files[0].write_text(json.dumps({"database": coin}, indent=1))
    files[1].write_text(json.dumps(captions, indent=1))
    files[2].write_text("".join(json.dumps(line) + "\n" for line in questions))
    return files


def coin_entry(source: Source) -> dict[str, Any]:
    steps = [
        {"id": str(index), "segment": [event.start_s, event.end_s], "label": event.text}
        for index, event in enumerate(source.events)
    ]
    return {"annotation": steps, "duration": source.duration_s, "recipe_type": 7, "subset": "training"}


def captions_entry(source: Source) -> dict[str, Any]:
    return {
        "duration": source.duration_s,
        "timestamps": [[event.start_s, event.end_s] for event in source.events],
        "sentences": [event.text for event in source.events],
    }


def question_line(video: str, source: Source) -> dict[str, Any]:
    question = source.question
    assert question is not None
    asked = {"question": question.text, "answer": question.letter, "options": list(question.options)}
    return {"video": video, **asked, "caption": source.caption}


def enlarged(clip: Clip, times: int) -> Clip:
    return Clip(frames=clip.frames.repeat(times, axis=1).repeat(times, axis=2), times_s=clip.times_s)


def write_video(clip: Clip, path: Path, codec: str) -> None:
    """The container is that of the file's suffix."""
    options = {"x265-params": "log-level=error"} if codec == "libx265" else {}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=world.FPS, options=options)
        _, stream.height, stream.width, _ = clip.frames.shape
        stream.pix_fmt = "yuv420p"
        for pixels in clip.frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=NUMBER, help="of videos")
    asked = parser.parse_args()
    try:
        made = make(asked.folder, asked.number)
    except FileExistsError:
        parser.error(f"{asked.folder}/videos is there already: choose another folder")
    print(f"{asked.number} videos in {asked.folder}/videos, and what happens in them: {', '.join(map(str, made))}")
