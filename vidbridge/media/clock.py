"""The times of frames where the container stores none, or wrong ones."""

from __future__ import annotations

import heapq

import av
from av.video.frame import PictureType

DECODE_ORDERED = ("avi", "asf")  # containers that store no presentation times: the demuxer's are guesses


class FrameClock:
    """Packets go in as they are read, frames as they are decoded: in the order in which they are shown.

    Where the times of packets only rise though pictures are stored in another order than they are shown in, they are
    those of decoding. The frames then take them in turn. Pictures of two fields are believed: each is two packets.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._by_decoding = any(name in container.format.name for name in DECODE_ORDERED)
        self._context = stream.codec_context
        self._unused: list[int] = []  # times of packets, a heap
        self._newest: int | None = None
        self._rises = True
        self._guesses = False  # where the demuxer knows that pictures wait for others
        self._previous: int | None = None  # the end of the last frame

    def note(self, packet: av.Packet) -> None:
        ticks = packet.dts if self._by_decoding else packet.pts
        self._guesses = self._guesses or (self._by_decoding and packet.pts != packet.dts)
        if not packet.size or packet.is_discard or not self._rises:
            return
        if ticks is not None and (self._by_decoding or self._newest is None or ticks > self._newest):
            heapq.heappush(self._unused, ticks)
            self._newest = ticks
        elif not self._by_decoding:
            self._rises, self._unused = False, []

    def begin(self, packet: av.Packet) -> None:
        """Forget the packets before this one, a key frame, of which no good frame can come."""
        ticks = packet.dts if self._by_decoding else packet.pts
        if ticks is not None:
            self._unused = [each for each in self._unused if each >= ticks]
            heapq.heapify(self._unused)

    def skip(self) -> None:
        """Note that no frame comes of a packet."""
        if self._unused:
            heapq.heappop(self._unused)

    def pts(self, frame: av.VideoFrame) -> int | None:
        """When ``frame`` is on show, in ticks; None before the first time that is known."""
        # no picture but a B-frame is shown before its decoding time: those in between were lost
        while not self._by_decoding and frame.pict_type != PictureType.B and len(self._unused) > 1:
            if frame.pts is None or self._unused[0] >= frame.pts:
                break
            heapq.heappop(self._unused)
        turn = heapq.heappop(self._unused) if self._unused else None
        is_of_fields = frame.interlaced_frame and not self._by_decoding
        is_believed = not self._guesses and (is_of_fields or not self._context.has_b_frames)
        pts = frame.pts if turn is None or is_believed else turn
        if pts is None or (self._by_decoding and turn is None and not is_believed):
            pts = self._previous
        self._previous = None if pts is None else pts + (frame.duration or 1)
        return pts
