"""One video file, opened with care: what it says about itself, and the frames on show at given times."""

from __future__ import annotations

import math
from bisect import bisect
from contextlib import suppress
from types import TracebackType
from typing import Iterable, Iterator, Self

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vidbridge.errors import VideoError
from vidbridge.media.clock import FrameClock
from vidbridge.media.container import check_file, open_container, plain
from vidbridge.media.extent import MAX_PAUSE_S, TOLERANCE_S, measure
from vidbridge.media.packets import packets_of, unhidden
from vidbridge.media.upright import upright

MAX_CANVAS_PIXELS = 2**24  # 4096 x 4096; a small file can ask for much more
INDEXED_FORMATS = ("mov", "matroska")  # they know where key frames are
STEADY_CODECS = ("h264", "hevc", "av1")  # a frame comes out for every packet that goes in, or something is wrong
# container time bases round: a frame due at 0.25 may say 0.250001
SLACK_S = 1e-3
MIN_SKIP_S = 0.5  # less is faster decoded than sought


class VideoFile:
    """Use as a context. Times count from the beginning of the file, as on the clock of a player: where pictures begin
    later than the sound, the first one is on show until then.

    Every complaint is a VideoError with one of these reasons: missing, not_a_file, empty, not_a_video,
    no_video_stream, too_large, no_duration, joined, damaged, cut_short, no_frames.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        check_file(path)
        self._reformatter = VideoReformatter()  # setting up the conversion costs more than a small frame
        self._open_stream()
        try:
            with open_container(self.path) as again:  # the first one is read from its very first packet
                stream = again.streams[self._stream.index]
                assert isinstance(stream, av.VideoStream)
                self._extent = measure(again, stream, path)
            self.duration_s = self._extent.duration_s
            self._start()
        except av.FFmpegError as error:
            self._container.close()
            raise self._error("damaged", f"cannot be decoded ({plain(error)})") from error
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
        """Yield the frame on show at each of the rising times, [H, W, 3] uint8, RGB, upright.

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
            raise self._error("damaged", f"cannot be decoded ({plain(error)})") from error

    def _open_stream(self) -> None:
        """Open the file and choose its first video stream."""
        self._container = open_container(self.path)
        try:
            videos = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
            if not videos:
                raise self._error("no_video_stream", "holds no video stream")
            self._stream = videos[0]
            context = self._stream.codec_context
            if context is None:
                raise self._error("not_a_video", "is coded in a way that is not known here")
            if context.width * context.height > MAX_CANVAS_PIXELS:
                size = f"{context.width} x {context.height}"
                raise self._error("too_large", f"is {size} pixels large, at most {MAX_CANVAS_PIXELS} are read")
        except BaseException:
            self._container.close()
            raise
        context.thread_count = 1  # clips are short, and other decodes run beside this one

    def _start(self) -> None:
        """Decode the first frame."""
        self._skips = self._is_of(INDEXED_FORMATS)
        self._has_skipped = False
        self._lead = 0  # of the first frame's time before its decoding time, by which mov's index counts
        try:
            self._go_on(strict=True)
        except av.FFmpegError:
            self._restart(strict=False)
        if self._ahead is None:
            raise self._error("no_frames", "not one frame can be decoded")
        first_s, start_s = float(self._ahead.time or 0.0), self._extent.start_s
        # what was on show before would be missing; broadcasts are cut anywhere, and asf has no start of its own
        if self._is_of((*INDEXED_FORMATS, "flv")) and first_s > start_s + TOLERANCE_S:
            raise self._error("damaged", f"its first frame is at {first_s:.2f} s, it begins at {start_s:.2f} s")
        self.height, self.width = self._upright(self._ahead).shape[:2]

    def _restart(self, *, strict: bool) -> None:
        """Read again from the first packet, now without skipping if there was a skip."""
        self._container.close()
        self._open_stream()
        self._skips = self._skips and not self._has_skipped
        self._has_skipped = False
        self._go_on(strict=strict)

    def _go_on(self, *, strict: bool = True, sought: bool = False) -> None:
        """Decode from where the container stands, which is its first packet or, when ``sought``, a key frame.

        Damage is an error instead of a guess. Without ``strict`` the decoder may go on after what its books do not
        allow, as at the beginning of a clip that was cut without encoding it anew; frames it marks are still errors.
        """
        if not sought:
            self._strict = strict
            # the stream may disagree with the header
            options = {"max_pixels": str(MAX_CANVAS_PIXELS)} | ({"err_detect": "explode"} if strict else {})
            self._stream.codec_context.options = options
        self._due: set[int] = set()  # times of packets whose frames are still to come
        self._clock = FrameClock(self._container, self._stream)
        self._frames = self._decoded_after_key() if sought else self._decoded_from_start()
        self._shown: av.VideoFrame | None = None
        self._ahead = next(self._frames, None)

    def _decoded_from_start(self) -> Iterator[av.VideoFrame]:
        """Return all frames but those before the first good one, which need what was cut off.

        Once something was not good that is a key frame, and a bad key frame is damage: it needs nothing before it.
        """
        has_begun, has_key, is_whole, newest_s = False, False, self._strict, -math.inf
        hidden: set[int | None] = set()  # times of frames that a list of edits takes out: what follows needs them
        for number, packet in enumerate(packets_of(self._container, self._stream, self.path)):
            if number == 0 and packet.pts is not None and packet.dts is not None:
                self._lead = packet.pts - packet.dts
            if packet.is_keyframe and not has_key:
                has_key = True
                self._clock.begin(packet)
            self._note(packet)
            if packet.is_discard and not self._strict:
                hidden.add(packet.pts)
                packet = unhidden(packet)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if has_begun or self._strict or packet.is_keyframe:
                    raise
                self._clock.skip()
                continue
            if packet.is_corrupt and has_begun:  # the demuxer says so: a part of it is missing
                raise self._error("damaged", f"is damaged after {newest_s:.2f} s")
            for frame in frames:
                if frame.pts in hidden:
                    if frame.key_frame and frame.is_corrupt:
                        raise self._error("damaged", f"is damaged before {self._extent.start_s:.2f} s")
                    is_whole = not frame.is_corrupt and (is_whole or frame.key_frame)
                    continue
                frame.pts = self._clock.pts(frame)
                if frame.is_corrupt and not self._strict and (has_begun or frame.key_frame):
                    raise self._error("damaged", f"is damaged at {self._time_s(frame):.2f} s")
                if not has_begun and (frame.is_corrupt or not (is_whole or frame.key_frame)):
                    is_whole = False
                    continue
                has_begun = True
                if frame.pts is None:  # it lies before time 0, which matroska cannot say
                    continue
                if self._time_s(frame) < newest_s - TOLERANCE_S:  # decoders give frames in the order of their times
                    raise self._error("damaged", f"goes back from {newest_s:.2f} s to {self._time_s(frame):.2f} s")
                if self._time_s(frame) < newest_s:  # by a little: the newer one stays on show
                    self._due.discard(frame.pts)
                    continue
                newest_s = self._time_s(frame)
                if newest_s > self.duration_s + MAX_PAUSE_S:
                    raise self._error("damaged", f"jumps to {newest_s:.2f} s, it ends at {self.duration_s:.2f} s")
                self._due.discard(frame.pts)
                yield frame

    def _decoded_after_key(self) -> Iterator[av.VideoFrame]:
        first: int | None = None
        for packet in packets_of(self._container, self._stream, self.path):
            if packet.pts is not None:
                first = packet.pts if first is None else first
                if packet.pts < first:  # shown before the key frame, and made of frames that were skipped
                    with suppress(av.FFmpegError):
                        packet.decode()
                    continue
            self._note(packet)
            for frame in packet.decode():
                frame.pts = self._clock.pts(frame)
                if frame.pts is not None and (first is None or frame.pts >= first):
                    self._due.discard(frame.pts)
                    yield frame

    def _note(self, packet: av.Packet) -> None:
        self._clock.note(packet)
        if packet.pts is not None and not packet.is_discard:
            self._due.add(packet.pts)

    def _is_of(self, formats: Iterable[str]) -> bool:
        return any(name in self._container.format.name for name in formats)

    def _time_s(self, frame: av.VideoFrame) -> float:
        return float(frame.time or 0.0) - self._extent.zero_s

    def _frame_at(self, time_s: float) -> av.VideoFrame:
        while True:
            try:
                return self._reached(time_s)
            except (av.FFmpegError, VideoError):
                if self._has_skipped:  # some streams need what lies before their key frames; damage is met again
                    self._restart(strict=self._strict)
                elif self._strict and self._is_early():
                    self._restart(strict=False)
                else:
                    raise

    def _is_early(self) -> bool:
        """Return whether the decoder may complain because of what was cut off before the beginning."""
        return self._ahead is not None and float(self._ahead.time or 0.0) < self._extent.start_s + TOLERANCE_S

    def _reached(self, time_s: float) -> av.VideoFrame:
        self._skip_towards(time_s)
        while self._ahead is not None and (self._shown is None or self._time_s(self._ahead) <= time_s + SLACK_S):
            self._shown, self._ahead = self._ahead, next(self._frames, None)
        shown = self._shown
        assert shown is not None, "there is a first frame"
        if shown.is_corrupt or self._is_lost(shown, time_s):
            raise self._error("damaged", f"is damaged at {self._time_s(shown):.2f} s")
        if self._ahead is None and time_s > (end_s := self._end_s(shown)) + TOLERANCE_S:
            says = f"its header says {self.duration_s:.2f} s"
            raise self._error("cut_short", f"its frames end at {end_s:.2f} s, {says}")
        return shown

    def _is_lost(self, shown: av.VideoFrame, time_s: float) -> bool:
        """Return whether a frame between ``shown`` and ``time_s`` went into the decoder and never came out.

        Only where packets and frames have the same times: in indexed files, but for pictures of two fields, each of
        which may be a packet.
        """
        base = self._stream.time_base
        if not self._is_of(INDEXED_FORMATS):
            return False
        if shown.interlaced_frame or self._stream.codec_context.name not in STEADY_CODECS:
            return False
        if base is None or shown.pts is None:
            return False
        self._due = {pts for pts in self._due if pts > shown.pts}
        return any(float(pts * base) - self._extent.zero_s <= time_s for pts in self._due)

    def _end_s(self, frame: av.VideoFrame) -> float:
        length = (frame.duration or 0) * frame.time_base if frame.time_base else 0
        return self._time_s(frame) + float(length or 1 / (self._stream.average_rate or 1))

    def _skip_towards(self, time_s: float) -> None:
        """Go to the last key frame before ``time_s`` when it lies ahead; the first frame there proves it."""
        if not self._skips or self._ahead is None:
            return
        base, index = self._stream.time_base, self._stream.index_entries
        keys = self._extent.keys
        if base is None or max(len(index), len(keys)) < 2:
            return
        here_s = self._time_s(self._ahead)
        wanted = round((time_s + self._extent.zero_s) / base)
        has_sought = False
        for _ in range(3):  # a key frame may have others shown before it, and lead by less
            if keys:
                nearest = bisect(keys, wanted) - 1
                key, lead = keys[max(nearest, 0)], 0
            else:
                nearest, lead = index.search_timestamp(wanted - self._lead), self._lead
                key = index[max(nearest, 0)].timestamp
            if nearest < 0 or float((key + lead) * base) - self._extent.zero_s < here_s + MIN_SKIP_S:
                break
            self._container.seek(key, stream=self._stream)
            self._has_skipped = has_sought = True
            self._go_on(sought=True)
            if self._ahead is not None and here_s < self._time_s(self._ahead) <= time_s + SLACK_S:
                return
            wanted = key + lead - 1
        if has_sought:
            self._restart(strict=self._strict)  # an index that lies, or a key frame that is gone

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        return upright(frame, self._reformatter)

    def _error(self, reason: str, detail: str) -> VideoError:
        return VideoError(self.path, reason, detail)
