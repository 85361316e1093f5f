"""Annotated videos as others write them down, read into one form.

COIN: ``{"database": {"<id>": {"duration": 60.1, "annotation": [{"segment": [4.0, 9.5], "label": "cut the end"}]}}}``
ActivityNet Captions: ``{"<id>": {"duration": 82.7, "timestamps": [[0.8, 19.9]], "sentences": ["A young woman .."]}}``
JSONL, one video a line: ``{"video": "a.mp4", "events": [[4.0, 9.5, "cut the end"]]}``, and any of ``question`` with
``answer`` and ``options`` (in any form that text/option_reader.py reads), ``caption``, ``start_s`` and ``end_s`` (the
part that counts), ``duration_s``. ``images`` (``["a.png", "b.jpg"]``, or one ``image``) stand in the place of the
video, or beside it.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from vidbridge.data.rows import pop_paths
from vidbridge.errors import DataError
from vidbridge.tasks.rows import check_choice
from vidbridge.text.option_reader import Options, about, question_and_options
from vidbridge.text.options import LETTERS
from vidbridge.text.sanitize import check_text, check_unicode, without_placeholders

Event = tuple[float, float, str]  # start, end, what happens
_FIELDS = (
    *("video", "images", "image", "uid", "events", "caption", "question", "answer", "options"),
    *("start_s", "end_s", "duration_s"),
)
MAX_S = 1e7  # a third of a year: no time in a video


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Everything known about one video, or a part of one. Times of events count from the start of that part."""

    uid: str
    video: str  # empty where there are images alone
    images: tuple[str, ...] = ()
    start_s: float = 0.0
    end_s: float | None = None
    duration_s: float | None = None  # of the whole file, where it is said
    events: tuple[Event, ...] = ()
    caption: str = ""
    question: str = ""
    answer: str = ""  # as a phrase, also where there are options
    options: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Return the path that says which split it belongs to: of the video, or the first image where there is none."""
        return self.video or self.images[0]


def read_annotations(
    path: Path, video_name: str, uids: dict[str, str] | None = None
) -> tuple[list[Annotation], list[str]]:
    """Return all annotations of a file, and what is wrong with it, by line or id. DataError when there is no such file.

    ``uids``: those of other files and where they are; those of this one are added.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    text = path.read_bytes().removeprefix(BOM_UTF8)
    found: list[Annotation] = []
    problems: list[str] = []
    uids = {} if uids is None else uids
    for where, make in _entries(path, text, video_name):
        try:
            known = make()
            if (first := uids.setdefault(known.uid, f"{path}:{where}")) != f"{path}:{where}":
                raise ValueError(f"uid {known.uid!r} is that of {first} already")
            found.append(known)
        except (ValueError, KeyError) as error:
            detail = f"field {error} is missing" if isinstance(error, KeyError) else error
            problems.append(f"{path}:{where}: {detail}")
    if not found and not problems:
        problems.append(f"{path}: annotates no video")
    return found, problems


def _entries(path: Path, text: bytes, video_name: str) -> Iterator[tuple[str, Callable[[], Annotation]]]:
    """Return where each entry stands and how it is read."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    # one line of JSONL is an object too, and names its video
    one_line = isinstance(whole, dict) and isinstance(whole.get("video"), str)
    if isinstance(whole, dict) and not one_line and any(isinstance(value, dict) for value in whole.values()):
        database = whole.get("database", whole)
        if not isinstance(database, dict):
            raise DataError(f"{path}: field 'database' must be an object of videos by their id")
        read = _coin if "database" in whole else _activity_net
        for name, entry in database.items():
            yield name, partial(read, path.stem, name, entry, video_name)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield str(number), partial(_jsonl, f"{path.stem}/{number}", line)


def _coin(stem: str, name: str, found: Any, video_name: str) -> Annotation:
    entry = _fields(found)
    steps = [_fields(step) for step in _list(entry["annotation"], "annotation")]
    return Annotation(
        uid=f"{stem}/{name}",
        video=_video(video_name, name, entry),
        duration_s=_length(entry.get("duration"), "duration"),
        events=_events([(*_span(step["segment"], "segment"), step["label"]) for step in steps]),
    )


def _activity_net(stem: str, name: str, found: Any, video_name: str) -> Annotation:
    entry = _fields(found)
    spans, sentences = _list(entry["timestamps"], "timestamps"), _list(entry["sentences"], "sentences")
    if len(spans) != len(sentences):
        raise ValueError(f"{len(spans)} timestamps for {len(sentences)} sentences")
    return Annotation(
        uid=f"{stem}/{name}",
        video=_video(video_name, name, entry),
        duration_s=_length(entry.get("duration"), "duration"),
        events=_events([(*_span(span, "timestamps"), sentence) for span, sentence in zip(spans, sentences)]),
    )


def _jsonl(uid: str, line: bytes) -> Annotation:
    entry = _fields(_json(line))
    if unknown := sorted(entry.keys() - set(_FIELDS)):
        raise ValueError(f"field '{unknown[0]}' is not known; there are {', '.join(_FIELDS)}")
    images, video = pop_paths(entry)
    for name in ("events", "start_s", "end_s", "duration_s"):
        if not video and entry.get(name):
            raise ValueError(f"field '{name}' is about a video, and there are images alone")
    question, answer, options = _asked(entry, num_images=len(images), num_videos=int(video != ""))
    uid = _name(entry.get("uid", uid), "uid")
    start_s, end_s = _seconds(entry.get("start_s"), "start_s") or 0.0, _seconds(entry.get("end_s"), "end_s")
    if end_s is not None and end_s <= start_s:
        raise ValueError(f"field 'end_s' must be more than start_s={start_s:g}, found {end_s:g}")
    return Annotation(
        uid=uid,
        video=video,
        images=images,
        start_s=start_s,
        end_s=end_s,
        duration_s=_length(entry.get("duration_s"), "duration_s"),
        events=_events([_triple(event) for event in _list(entry.get("events", []), "events")]),
        caption=_text(entry.get("caption", ""), "caption"),
        question=question,
        answer=answer,
        options=options,
    )


def _asked(entry: Mapping[str, Any], **shown: int) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer as a phrase, and options, where there are some."""
    question, found = entry.get("question", ""), entry.get("options") or None
    answer = entry.get("answer", "")
    if found and isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)  # the text of an option, as in "options": [2, 3, 4]
    for name, value in (("question", question), ("answer", answer)):
        if not isinstance(value, str):
            raise ValueError(f"field '{name}' must be a text, found {value!r}")
        check_text(value, name)
    if bool(question.strip()) != bool(answer.strip()):
        raise ValueError("fields 'question' and 'answer' belong together")
    if not question.strip():
        if found:
            raise ValueError("field 'options' belongs to a 'question', and there is none")
        return "", "", ()
    question = without_placeholders(question, "question", **shown)
    try:
        alone, options = question_and_options(question, found, "question", "options")
        if options is not None:
            return _text(alone, "question"), *_chosen(options, answer)
    except ValueError:
        if found or re.fullmatch(r"\W*[A-Za-z]\W*", answer):  # else a question that happens to hold a list
            raise
    return _text(question, "question"), _text(answer, "answer"), ()


def _chosen(options: Options, answer: str) -> tuple[str, tuple[str, ...]]:
    """The text of the right option, and all of them."""
    for option in options.texts:
        check_text(option, "options")
    with about("answer"):
        letter = options.letter_of(answer)
    check_choice(options.texts, letter)
    return options.texts[LETTERS.index(letter)], options.texts


def _triple(event: Any) -> Event:
    if isinstance(event, dict):
        return event["start_s"], event["end_s"], event["text"]
    if not isinstance(event, list) or len(event) != 3:
        raise ValueError(f"field 'events' must hold [start, end, text], found {event!r}")
    return event[0], event[1], event[2]


def _events(found: list[Event]) -> tuple[Event, ...]:
    events = []
    for start, end, label in found:
        start_s, end_s, text = _seconds(start, "start"), _seconds(end, "end"), _text(label, "label")
        if start_s is None or end_s is None or start_s >= end_s or not text:
            raise ValueError(f"an event needs start < end and a text, found {[start, end, label]}")
        events.append((start_s, end_s, text))
    return tuple(sorted(events))


def _video(video_name: str, name: str, entry: Mapping[str, Any]) -> str:
    try:
        return _name(video_name.format(id=name, **{key: value for key, value in entry.items() if key != "id"}), "video")
    except KeyError as error:
        raise ValueError(f"data.video_name={video_name!r} asks for {error}, which this video does not have") from error
    except (ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"data.video_name={video_name!r} must be like '{{id}}.mp4' ({error})") from error


def _fields(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    return entry


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"field '{name}' must be a list, found {value!r}")
    return value


def _span(value: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"field '{name}' must hold [start, end], found {value!r}")
    return value[0], value[1]


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (at byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error


def _text(value: Any, name: str) -> str:
    """A text as one line."""
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' must be a text, found {value!r}")
    check_text(value, name)
    return " ".join(value.split())


def _name(value: Any, name: str) -> str:
    """A path or an id, which is no text: it is taken as it stands, blanks and all."""
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' must be a text, found {value!r}")
    check_unicode(value, name)
    if not value.strip():
        raise ValueError(f"field '{name}' is empty")
    return value


def _seconds(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_S:
        raise ValueError(f"field '{name}' must be seconds, found {value!r}")
    return float(value)


def _length(value: Any, name: str) -> float | None:
    if (length_s := _seconds(value, name)) == 0:
        raise ValueError(f"field '{name}' must be more than 0 seconds; leave it out where it is not known")
    return length_s
