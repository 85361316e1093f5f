"""One video file, opened with care: what it says about itself, and the frames on show at given times."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from types import TracebackType
from typing import Any, Iterable, Iterator, Self

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

MAX_CANVAS_PIXELS = 2**24  # 4096 x 4096; a small file can ask for much more
# Containers of videos. No playlists: they name other files and addresses, whatever the file is called.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
INDEXED_FORMATS = ("mov", "matroska")  # they know where key frames are
STEADY_CODECS = ("h264", "hevc", "av1")  # a frame comes out for every packet that goes in, or something is wrong
MAX_GAP_BYTES = 1024  # headers between two packets of a matroska file
END_TOLERANCE_S = 0.5  # a last frame may stay on show that much longer than it says
# container time bases round: a frame due at 0.25 may say 0.250001
SLACK_S = 1e-3
MIN_SKIP_S = 0.5  # less is faster decoded than sought


class VideoError(ValueError):
    """A video that cannot be read: which file, why in a word, and in a sentence."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail} [{reason}]")
        self.path, self.reason, self.detail = path, reason, detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, str]]:
        return VideoError, (self.path, self.reason, self.detail)


class VideoFile:
    """Use as a context. Every complaint is a VideoError with one of these reasons:

    missing, not_a_file, empty, not_a_video, no_video_stream, too_large, no_duration, damaged, cut_short, no_frames.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        _check_file(path)
        self._container = self._open()
        try:
            self._open_stream()
        except av.FFmpegError as error:
            self._container.close()
            raise self._error("damaged", f"cannot be decoded ({_plain(error)})") from error
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def frames_at(self, times_s: Iterable[float]) -> Iterator[np.ndarray]:
        """For each of the rising times the frame on show then, [H, W, 3] uint8, RGB, upright.

        Decodes forward and keeps the last frame at or before each time, which is right for variable frame rates;
        where a key frame lies in between, what comes before it is skipped.
        """
        converted: tuple[av.VideoFrame, np.ndarray] | None = None
        try:
            for time_s in times_s:
                shown = self._frame_at(time_s)
                if converted is None or converted[0] is not shown:
                    converted = shown, self._upright(shown)
                yield converted[1]
        except av.FFmpegError as error:
            raise self._error("damaged", f"cannot be decoded ({_plain(error)})") from error

    def _open(self) -> av.container.InputContainer:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            return av.open(f"file:{os.path.abspath(self.path)}", metadata_errors="replace", container_options=options)
        except (av.FFmpegError, UnicodeError) as error:
            raise self._error("not_a_video", f"is no video that can be opened ({_plain(error)})") from error

    def _open_stream(self) -> None:
        videos = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise self._error("no_video_stream", "holds no video stream")
        self._stream = stream = videos[0]
        context = stream.codec_context
        if context is None:
            raise self._error("not_a_video", "is coded in a way that is not known here")
        if context.width * context.height > MAX_CANVAS_PIXELS:
            size = f"{context.width} x {context.height}"
            raise self._error("too_large", f"is {size} pixels large, at most {MAX_CANVAS_PIXELS} are read")
        # the stream may disagree with the header; damage is an error instead of a guess
        context.options = {"max_pixels": str(MAX_CANVAS_PIXELS), "err_detect": "explode"}
        context.thread_count = 1  # clips are short, and other decodes run beside this one
        self._reformatter = VideoReformatter()  # setting up the conversion costs more than a small frame
        self.duration_s = self._duration_s()
        self._skips = any(name in self._container.format.name for name in INDEXED_FORMATS)
        self._has_skipped = False
        if self._skips:
            self._container.seek(stream.start_time or 0, stream=stream)  # matroska reads its index on the way
        self._go_on()
        if self._ahead is None:
            raise self._error("no_frames", "not one frame can be decoded")
        self._first_s = float(self._ahead.time or 0.0)
        start_s = float((stream.start_time or 0) * (stream.time_base or 0))
        if self._skips and self._first_s > start_s + END_TOLERANCE_S:  # all times would be wrong by so much
            raise self._error("damaged", f"its first frame is at {self._first_s:.2f} s, it begins at {start_s:.2f} s")
        self.height, self.width = self._upright(self._ahead).shape[:2]

    def _duration_s(self) -> float:
        """Of the pictures, not of the sound; counted where no header says it."""
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        seconds = _seconds(stream.metadata.get("DURATION", "")) or (container.duration or 0) / av.time_base
        if "matroska" in container.format.name:  # which names the end, and pictures may begin later than the file
            seconds -= float((stream.start_time or 0) * (stream.time_base or 0))
        if seconds > 0:
            return seconds
        with self._open() as again:
            spans = [(p.pts, p.pts + (p.duration or 0)) for p in again.demux(stream.index) if p.pts is not None]
        ticks = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0
        if ticks <= 0 or stream.time_base is None:
            raise self._error("no_duration", "lasts no time at all")
        return float(ticks * stream.time_base)

    def _go_on(self) -> None:
        """From where the container stands now, which is a key frame."""
        self._due: list[int] = []  # times of packets whose frames are still to come
        self._frames = self._decoded()
        self._shown: av.VideoFrame | None = None
        self._ahead = next(self._frames, None)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        first: int | None = None
        for packet in self._packets():
            if packet.pts is not None:
                first = packet.pts if first is None else first
                if packet.pts < first:  # shown before the key frame, and made of frames that were skipped
                    with suppress(av.FFmpegError):
                        packet.decode()
                    continue
                if not packet.is_discard:
                    self._due.append(packet.pts)
            yield from (frame for frame in packet.decode() if first is None or frame.pts is None or frame.pts >= first)

    def _packets(self) -> Iterator[av.Packet]:
        """Those of the stream. Where matroska loses its way it goes on at the next good place and says nothing."""
        leaves_gaps = "matroska" in self._container.format.name
        end: int | None = None
        for packet in self._container.demux() if leaves_gaps else self._container.demux(self._stream):
            if leaves_gaps and packet.pos is not None and packet.pos >= 0:
                if end is not None and packet.pos > end + MAX_GAP_BYTES:
                    raise self._error("damaged", f"is damaged after byte {end}")
                end = packet.pos + packet.size + _added_bytes(packet)
            if packet.stream.index == self._stream.index:
                yield packet

    def _time_s(self, frame: av.VideoFrame) -> float:
        return float(frame.time or 0.0) - self._first_s

    def _frame_at(self, time_s: float) -> av.VideoFrame:
        try:
            return self._reached(time_s)
        except (av.FFmpegError, VideoError):
            if not self._has_skipped:
                raise
            # some streams need what lies before their key frames; if it is damage, it will be met again
            self._from_the_start()
            return self._reached(time_s)

    def _reached(self, time_s: float) -> av.VideoFrame:
        self._skip_towards(time_s)
        while self._ahead is not None and (self._shown is None or self._time_s(self._ahead) <= time_s + SLACK_S):
            self._shown, self._ahead = self._ahead, next(self._frames, None)
        shown = self._shown
        assert shown is not None, "there is a first frame"
        if shown.is_corrupt or self._is_lost(shown, time_s):
            raise self._error("damaged", f"is damaged at {self._time_s(shown):.2f} s")
        if self._ahead is None and time_s > (end_s := self._end_s(shown)) + END_TOLERANCE_S:
            says = f"its header says {self.duration_s:.2f} s"
            raise self._error("cut_short", f"its frames end at {end_s:.2f} s, {says}")
        return shown

    def _is_lost(self, shown: av.VideoFrame, time_s: float) -> bool:
        """Whether a frame between ``shown`` and ``time_s`` went into the decoder and never came out."""
        base = self._stream.time_base
        if base is None or shown.pts is None or self._stream.codec_context.name not in STEADY_CODECS:
            return False
        self._due = [pts for pts in self._due if pts > shown.pts]
        return any(float(pts * base) - self._first_s <= time_s for pts in self._due)

    def _end_s(self, frame: av.VideoFrame) -> float:
        length = (frame.duration or 0) * frame.time_base if frame.time_base else 0
        return self._time_s(frame) + float(length or 1 / (self._stream.average_rate or 1))

    def _skip_towards(self, time_s: float) -> None:
        """Go to the last key frame before ``time_s`` when it lies ahead; the first frame there proves it."""
        if not self._skips or self._ahead is None:
            return
        base, index = self._stream.time_base, self._stream.index_entries
        if base is None or len(index) < 2:
            return
        here_s = self._time_s(self._ahead)
        # decoding times lead the frame times by a constant, but for key frames with others shown before them
        lead = round(self._first_s / base) - index[0].timestamp
        wanted = round((time_s + self._first_s) / base) - lead
        has_sought = False
        for _ in range(3):
            place = index.search_timestamp(wanted)
            if place < 0:
                break
            key = index[place].timestamp
            if float((key + lead) * base) - self._first_s < here_s + MIN_SKIP_S:
                break
            self._container.seek(key, stream=self._stream)
            self._has_skipped = has_sought = True
            self._go_on()
            if self._ahead is not None and here_s < self._time_s(self._ahead) <= time_s + SLACK_S:
                return
            wanted = key - 1
        if has_sought:
            self._from_the_start()  # an index that lies, or a key frame that is gone

    def _from_the_start(self) -> None:
        """Again, frame by frame."""
        self._skips = self._has_skipped = False
        self._container.seek(self._stream.start_time or 0, stream=self._stream)
        self._go_on()

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        pixels: np.ndarray
        side_data: Any = frame.side_data
        if any(component.is_alpha for component in frame.format.components):
            rgba = self._reformatter.reformat(frame, format="rgba", threads=1).to_ndarray().astype(np.uint16)
            pixels = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)  # as shown on black
        else:
            pixels = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = side_data.get(SideData.DISPLAYMATRIX)
        return pixels if matrix is None else turned(pixels, np.frombuffer(bytes(matrix), np.int32))

    def _error(self, reason: str, detail: str) -> VideoError:
        return VideoError(self.path, reason, detail)


def turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``pixels`` [H, W, 3] as a player shows them: ``matrix`` [a b u c d v x y w] sends (x, y) to (ax + cy, bx + dy).

    Quarter turns and mirror images; whatever lies between is taken for the nearest of these.
    """
    a, b, _, c, d = matrix[:5].astype(int)
    if abs(a) >= abs(b):
        along_y, along_x = d, a
    else:
        pixels = pixels.transpose(1, 0, 2)
        along_y, along_x = b, c
    return np.ascontiguousarray(pixels[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1])


def _check_file(path: str) -> None:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoError(path, "missing", "no such video file") from error
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(path, "not_a_file", "is a folder, a pipe or a device, not a file")
    if found.st_size == 0:
        raise VideoError(path, "empty", "is empty")


def _added_bytes(packet: av.Packet) -> int:
    """What a matroska block carries besides its picture: how transparent it is."""
    return sum(each.data_size for each in packet.iter_sidedata() if each.data_type == "matroska_block_additional")


def _seconds(text: str) -> float:
    """
    >>> _seconds("00:01:02.500000000"), _seconds("soon")
    (62.5, 0.0)
    """
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
