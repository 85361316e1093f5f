"""MixVidQA's questions and answers, written by a vision language model that is shown one clip, and a sheet to review.

What comes out is a file of annotations for data=raw; which second clip is mixed in is drawn when it is read.
"""

from __future__ import annotations

import base64
import html
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, Sequence

from PIL import Image

from vidbridge.data.formats.annotated_videos import Raw, part
from vidbridge.data.formats.annotations import Annotation
from vidbridge.data.tools.job import Job
from vidbridge.data.tools.preview import STYLE, contact_sheet
from vidbridge.errors import DataError
from vidbridge.judges.base import JudgeUnavailable, Reply
from vidbridge.judges.chat_prompt import Chat
from vidbridge.judges.llm_judge import Said
from vidbridge.media.origins import origins_of
from vidbridge.runtime.jsonl_log import append_lines, resumed_lines
from vidbridge.runtime.progress import progress
from vidbridge.types import Clip

WRITTEN, SHEETS, PAGE = "written.jsonl", "sheets", "review.html"
AT_ONCE = 64  # clips whose frames are held
_MAX_CHARS = 300  # of a question, and of an answer
_CHARS_OF_A_FRAME = 1000  # for the limit of tokens a minute
_TASK = (
    "You see the frames of one clip in order. It will be cut into pieces, which take turns with pieces of another clip "
    "that you do not see. Write one question that only somebody can answer who follows this clip through the other: "
    "about what happens, in which order, to whom or with what. It names the subject so that nobody takes the other "
    "clip for the one that is meant, offers no options, cannot be answered without seeing the clip, and has one right "
    "answer. Answer it in one short sentence that states only what the frames show."
)
_FORM = 'Reply with JSON alone: {"question": "..", "answer": ".."}'

Write = Callable[[Sequence[Chat]], list[Said]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePrompt:
    """The frames of a clip and what to do with them; a ``Chat``."""

    clip: Clip
    name: str = "write_qa"

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        frames = [{"type": "image_url", "image_url": {"url": as_url(Image.fromarray(f))}} for f in self.clip.frames]
        times = ", ".join(f"{time_s:.1f}" for time_s in self.clip.times_s)
        text = {"type": "text", "text": f"Seconds of the frames: {times}. {_FORM}"}
        return ({"role": "system", "content": _TASK}, {"role": "user", "content": [*frames, text]})

    @property
    def num_chars(self) -> int:
        return len(_TASK) + len(_FORM) + _CHARS_OF_A_FRAME * len(self.clip.frames)

    @property
    def schema(self) -> dict[str, Any]:
        text = {"type": "string"}
        return {
            "type": "object",
            "properties": {"question": text, "answer": text},
            "required": ["question", "answer"],
            "additionalProperties": False,
        }

    def checked(self, reply: Reply) -> Reply:
        try:
            read_reply(reply)
        except JudgeUnavailable as error:
            return error
        return reply


def read_reply(reply: Reply) -> tuple[str, str]:
    """Question and answer; JudgeUnavailable for a reply of any other form.

    >>> read_reply('{"question": "What does the square do?", "answer": "It grows."}')
    ('What does the square do?', 'It grows.')
    """
    if isinstance(reply, JudgeUnavailable):
        raise reply
    try:
        fields = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise JudgeUnavailable("the reply is not JSON") from error
    if not isinstance(fields, dict) or fields.keys() != {"question", "answer"}:
        raise JudgeUnavailable('the reply is not {"question": .., "answer": ..}')
    texts = [" ".join(text.split()) if isinstance(text, str) else "" for text in (fields["question"], fields["answer"])]
    if not all(0 < len(text) <= _MAX_CHARS for text in texts):
        raise JudgeUnavailable(f"question and answer are texts of 1 to {_MAX_CHARS} characters")
    if not texts[0].endswith("?"):
        raise JudgeUnavailable("the question does not end with a question mark")
    return texts[0], texts[1]


def write_qa(job: Job, write: Write) -> None:
    """written.jsonl, a sheet of frames for each, review.html. A second run asks only for what is not written yet."""
    if not isinstance(job.dataset, Raw):
        raise DataError("write_qa takes its clips from annotations: data=raw (a line {'video': 'a.mp4'} is enough)")
    clips = [known for known in job.dataset.annotated if known.video][: job.number]
    path = job.folder / WRITTEN
    (job.folder / SHEETS).mkdir(exist_ok=True)
    done = {line["uid"] for line in resumed_lines(path)}
    missing = [known for known in clips if known.uid not in done]
    failures: list[str] = []
    chunks = [missing[first : first + AT_ONCE] for first in range(0, len(missing), AT_ONCE)]
    with progress("clips", len(missing)) as advance:
        for chunk in chunks:
            failures += write_some(job, chunk, write)
            advance(len(chunk))
    lines = resumed_lines(path)
    (job.folder / PAGE).write_text(page(lines), encoding="utf-8")
    for failure in failures[:20]:
        print(failure)
    print(f"written: {path}, {len(lines)} of {len(clips)}, {len(failures)} failed (again with resume=auto); see {PAGE}")
    if not lines:
        raise DataError("nothing was written")


def write_some(job: Job, chunk: Sequence[Annotation], write: Write) -> Iterator[str]:
    """Why there is no question for some of these."""
    (frames,) = {task.frames for task in job.tasks.values()}
    assert frames is not None

    def read(known: Annotation) -> Clip | ValueError:
        try:
            return job.dataset.reader(part(known), frames)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(job.dataset.reader.width) as pool:
        found = list(zip(chunk, pool.map(read, chunk)))
    yield from (f"{known.uid}: {error}" for known, error in found if isinstance(error, ValueError))
    clips = [(known, clip) for known, clip in found if isinstance(clip, Clip)]
    replies = write([WritePrompt(clip=clip) for _, clip in clips])
    for (known, clip), said in zip(clips, replies, strict=True):
        try:
            question, answer = read_reply(said.reply)
        except JudgeUnavailable as error:
            yield f"{known.uid}: {error}"
            continue
        contact_sheet(clip, origins_of(part(known), clip.times_s)).save(job.folder / sheet_of(known.uid))
        line = {"uid": known.uid, "video": known.video, "question": question, "answer": answer}
        times = {"start_s": known.start_s, "end_s": known.end_s, "duration_s": known.duration_s}
        append_lines(job.folder / WRITTEN, [line | {name: value for name, value in times.items() if value}])


def sheet_of(uid: str) -> str:
    """Return where the frames are shown, from the folder of the command.

    >>> sheet_of("clips/7")
    'sheets/clips_7.png'
    """
    return f"{SHEETS}/{''.join(letter if letter.isalnum() or letter in '-.' else '_' for letter in uid)}.png"


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write the page that a person goes through, to strike out wrong lines of written.jsonl."""
    sections = [
        f"<h3>{html.escape(line['uid'])}</h3><p>{html.escape(line['question'])}<br><b>{html.escape(line['answer'])}</b>"
        f"</p><img loading='lazy' src='{sheet_of(line['uid'])}'>"
        for line in lines
    ]
    head = f"<!doctype html>\n<meta charset='utf-8'>\n<title>review</title>\n<style>{STYLE}</style>\n"
    return head + "\n".join([f"<p>Delete from {WRITTEN} what is wrong.</p>", *sections])


def as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
