"""Questions written by a model behind a real server, which here is told what it replies."""

import base64
import io
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.data.exporting import export_annotations
from vidbridge.data.formats.annotated_videos import Raw, part
from vidbridge.data.tools.job import Job
from vidbridge.data.tools.write_qa import read_reply, write_qa
from vidbridge.errors import DataError
from vidbridge.judges import pacing
from vidbridge.judges.base import JudgeUnavailable
from vidbridge.judges.openai_chat import OpenAIChat
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.runtime.json_http import ThreadedServer
from vidbridge.shapes_world import serve
from vidbridge.tasks.mix_vid_qa import MixVidQA
from vidbridge.tasks.rows import TaskRows

BUDGET = FrameBudget(fps=None, max_frames=4, min_pixels=2304, max_pixels=2304, multiple=16)
GOOD = json.dumps({"question": "What does  the square do?", "answer": "It grows."})


@contextmanager
def vision_server(replies):
    """Replies in turn; a number is an HTTP status. Yields its address and the bodies of the calls."""
    calls, lock = [], threading.Lock()

    class Handler(serve.Handler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                calls.append(body)
                reply = replies[len(calls) - 1] if len(calls) <= len(replies) else GOOD
            if isinstance(reply, int):
                self.respond(reply, {"error": {"message": "not now"}})
            else:
                self.respond(200, serve.completion(reply, body["model"]))

    with ThreadedServer((serve.HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{serve.HOST}:{server.server_address[1]}/v1", calls
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.01)
    export_annotations(tmp_path, 4)
    lines = [{"video": f"shape{number}.mp4", "uid": f"clips/{number}"} for number in range(4)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Raw(root=str(tmp_path / "videos"), annotations=[str(tmp_path / "clips.jsonl")], workers=0)
    (tmp_path / "out").mkdir()
    tasks = {"mix_vid_qa": TaskRows(task=MixVidQA(), frames=BUDGET, read=data.reader)}
    return Job(dataset=data, tasks=tasks, folder=tmp_path / "out")


def ask(url):
    return OpenAIChat(base_url=url, model="sees", max_concurrent=1, deadline_s=5).chat


def test_questions_are_written_once_and_become_annotations(job):
    with vision_server([GOOD, 503, "no JSON", GOOD, 400, GOOD]) as (url, calls):
        write_qa(job, ask(url))
        # the second is asked three times, the third refused for good, the fourth answered
        assert len(calls) == 6 and len((job.folder / "written.jsonl").read_text().splitlines()) == 3
        write_qa(job, ask(url))
        assert len(calls) == 7  # what was refused, again
    parts = calls[0]["messages"][1]["content"]
    pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    (seen,) = {Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size for url in pictures}
    assert len(pictures) == 4 and seen == (48, 48)
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0].split(",")[1]))))
    shown = job.dataset.reader(part(job.dataset.annotated[0]), BUDGET).frames[0]
    assert np.abs(first.astype(int) - shown).mean() < 4  # JPEG
    assert calls[0]["response_format"]["json_schema"]["schema"]["required"] == ["question", "answer"]
    written = Raw(root=job.dataset.root, annotations=[str(job.folder / "written.jsonl")], held_out_frac=1e-9)
    task = written.filled(job.tasks["mix_vid_qa"], "train")
    assert task.sample(0).question == "What does the square do?" and task.sample(0).answer == "It grows."
    assert {known.uid for known in written.annotated} == {f"clips/{number}" for number in range(4)}
    page = (job.folder / "review.html").read_text()
    assert page.count("<img") == 4 == len(list((job.folder / "sheets").glob("*.png")))


def test_what_a_model_writes_is_shown_as_text(job):
    evil = json.dumps({"question": "<script>alert(1)</script>?", "answer": "<b>"})
    with vision_server([evil] * 4) as (url, _):
        write_qa(job, ask(url))
    assert "<script>" not in (job.folder / "review.html").read_text()


def test_nobody_there_is_an_error_and_writes_nothing(job):
    with vision_server([401] * 4) as (url, calls):
        with pytest.raises(DataError, match="nothing was written"):
            write_qa(job, ask(url))
    assert len(calls) == 4


@pytest.mark.parametrize(
    "reply",
    [
        "no JSON",
        "[]",
        '{"question": "What?"}',
        '{"question": "What?", "answer": "x", "note": "y"}',
        '{"question": "What?", "answer": " "}',
        '{"question": 3, "answer": "x"}',
        '{"question": "Tell me.", "answer": "x"}',
        json.dumps({"question": "a" * 300 + "?", "answer": "x"}),
        "[" * 100_000,
    ],
)
def test_a_reply_of_another_form_is_none(reply):
    with pytest.raises(JudgeUnavailable):
        read_reply(reply)
