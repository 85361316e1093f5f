"""Contact sheets: a row of frames for each sample as the model sees them, with times and where each frame is from.

Beside each is the whole prompt, as the chat template makes it.
"""

from __future__ import annotations

import base64
import html
import io

from PIL import Image, ImageDraw

from vidbridge.data.tools.job import Job
from vidbridge.media.origins import Origins, origins
from vidbridge.policy.processor import Processor
from vidbridge.text.prompts import Messages
from vidbridge.types import Clip

FRAMES_A_LINE, HEIGHT, BORDER, CAPTION = 12, 96, 4, 14  # pixels
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (23, 190, 207))  # and again
DARK = (120, 120, 120)
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
            except ValueError as error:
                sections.append(f"<h3>{html.escape(sample.uid)}</h3><p>{html.escape(str(error))}</p>")
                continue
            sheets = []
            for number, clip in enumerate(prompt.clips):
                sheets.append(contact_sheet(clip, origins(sample, number, clip.times_s)))
                nth = f"_{number + 1}" if number else ""
                sheets[-1].save(job.folder / f"{split}_{task.name}_{index}{nth}.png")
            title = f"<h3>{html.escape(sample.uid)} ({split})</h3>"
            shown = processor.render(prompt.messages) if processor else as_text(prompt.messages)
            told = f"<pre>{html.escape(shown)}</pre><p><b>{html.escape(sample.answer)}</b></p>"
            sections.append(title + "".join(f"<img src='{_as_url(sheet)}'>" for sheet in sheets) + told)
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
        lines += [f"[{message['role']}]", *(part.get("text", f"[{part['type']}]") for part in message["content"])]
    return "\n".join(lines)


def contact_sheet(clip: Clip, origins: Origins) -> Image.Image:
    """Return all frames, each in the colour of its source; below, its time and where another second is shown, that.

    An image has its name below.
    """
    height, width = clip.frames.shape[1:3]
    size = round(width * HEIGHT / height), HEIGHT
    cell = size[0] + 2 * BORDER, size[1] + 2 * BORDER + CAPTION
    columns = min(FRAMES_A_LINE, len(clip.frames))
    lines = -(-len(clip.frames) // columns)
    sheet = Image.new("RGB", (columns * cell[0], lines * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, time_s, origin) in enumerate(zip(clip.frames, clip.times_s, origins.frames)):
        left, top = index % columns * cell[0], index // columns * cell[1]
        colour = DARK if origin is None else COLOURS[origin[0] % len(COLOURS)]
        draw.rectangle((left, top, left + cell[0] - 2, top + size[1] + 2 * BORDER - 1), fill=colour)
        sheet.paste(Image.fromarray(pixels).resize(size), (left + BORDER, top + BORDER))
        shown = "" if origin is None or abs(origin[1] - time_s) < 0.005 else f" from {origin[1]:.2f}"
        told = origins.sources[0] if clip.is_image else f"{time_s:.2f} s{shown}"
        draw.text((left + BORDER, top + size[1] + 2 * BORDER), told, fill="black")
    return sheet


def _as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
