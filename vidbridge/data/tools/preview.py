"""Contact sheets: a row of frames for each sample as the model sees them, with times and where each frame is from.

Beside each is the whole prompt, as the chat template makes it.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Sequence

from PIL import Image, ImageDraw

from vidbridge.data.tools.job import Job
from vidbridge.media.origins import origins
from vidbridge.policy.processor import Processor
from vidbridge.text.prompts import Messages
from vidbridge.types import Clip, Sample

FRAMES_A_LINE, HEIGHT, BORDER, CAPTION = 12, 96, 4, 14  # pixels
COLOURS = ((31, 119, 180), (255, 127, 14), (120, 120, 120))  # of the first source shown, of the second, of the dark
PAGE = "preview.html"
DEFAULT_NUMBER = 4

STYLE = """body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em }
img { max-width: 100% }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 0.6em 1em }"""


def preview(job: Job, processor: Processor | None) -> None:
    """preview.html and a PNG for each sample; those that cannot be read are told.

    Without a processor prompts are shown as the messages that a chat template would be given.
    """
    sections = []
    for split, task in job.filled():
        for index in job.indices(task)[: job.number or DEFAULT_NUMBER]:
            sample = task.sample(index)
            try:
                prompt = task.prompt(sample)
                (clip,) = prompt.clips
            except ValueError as error:
                sections.append(f"<h3>{html.escape(sample.uid)}</h3><p>{html.escape(str(error))}</p>")
                continue
            sheet = contact_sheet(clip, sources_of(sample, clip))
            sheet.save(job.folder / f"{split}_{task.name}_{index}.png")
            title = f"<h3>{html.escape(sample.uid)} ({split})</h3>"
            shown = processor.render(prompt.messages) if processor else as_text(prompt.messages)
            told = f"<pre>{html.escape(shown)}</pre><p><b>{html.escape(sample.answer)}</b></p>"
            sections.append(f"{title}<img src='{_as_url(sheet)}'>{told}")
    page = f"<!doctype html>\n<meta charset='utf-8'>\n<title>preview</title>\n<style>{STYLE}</style>\n"
    (job.folder / PAGE).write_text(page + "\n".join(sections), encoding="utf-8")
    print(f"written: {job.folder / PAGE}")


def as_text(messages: Messages) -> str:
    """
    >>> as_text(({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What next?"}]},))
    '[user]\\n[video]\\nWhat next?'
    """
    lines = []
    for message in messages:
        lines += [f"[{message['role']}]", *(part.get("text", "[video]") for part in message["content"])]
    return "\n".join(lines)


def sources_of(sample: Sample, clip: Clip) -> list[int]:
    """Return the source of each frame: 0 and 1 for the first and second video shown, 2 for the dark."""
    return [2 if origin is None else origin[0] for origin in origins(sample, 0, clip.times_s).frames]


def contact_sheet(clip: Clip, sources: Sequence[int]) -> Image.Image:
    """Framed in the colour of its source, each frame with its time below."""
    height, width = clip.frames.shape[1:3]
    size = round(width * HEIGHT / height), HEIGHT
    cell = size[0] + 2 * BORDER, size[1] + 2 * BORDER + CAPTION
    columns = min(FRAMES_A_LINE, len(clip.frames))
    lines = -(-len(clip.frames) // columns)
    sheet = Image.new("RGB", (columns * cell[0], lines * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, time_s, source) in enumerate(zip(clip.frames, clip.times_s, sources)):
        left, top = place % columns * cell[0], place // columns * cell[1]
        draw.rectangle((left, top, left + cell[0] - 2, top + size[1] + 2 * BORDER - 1), fill=COLOURS[source])
        sheet.paste(Image.fromarray(pixels).resize(size), (left + BORDER, top + BORDER))
        draw.text((left + BORDER, top + size[1] + 2 * BORDER), f"{time_s:.2f} s", fill="black")
    return sheet


def _as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
