"""The packets of a video stream, as a decoder is given them."""

from __future__ import annotations

from typing import Iterator

import av

from vidbridge.errors import VideoError

MAX_GAP_BYTES = 1024  # headers between two packets of a matroska file


def packets_of(
    container: av.container.InputContainer, stream: av.VideoStream, path: str
) -> Iterator[av.Packet]:
    """Yield the packets from where the container stands.

    VideoError where matroska has lost its way: it goes on at the next good place and does not say so.
    """
    leaves_gaps = "matroska" in container.format.name
    end: int | None = None
    for packet in container.demux() if leaves_gaps else container.demux(stream):
        if leaves_gaps and packet.pos is not None and packet.pos >= 0:
            if end is not None and packet.pos > end + MAX_GAP_BYTES:
                raise VideoError(path, "damaged", f"is damaged after byte {end}")
            end = packet.pos + packet.size + _added_bytes(packet)
        if packet.stream.index == stream.index:
            yield packet


def unhidden(packet: av.Packet) -> av.Packet:
    """Return a copy without the mark by which a decoder keeps its frame to itself."""
    copy = av.Packet(bytes(packet))
    copy.stream, copy.pts, copy.dts, copy.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
    copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
    return copy


def _added_bytes(packet: av.Packet) -> int:
    """Return the size of what a matroska block carries besides its picture: how transparent it is."""
    return sum(each.data_size for each in packet.iter_sidedata() if each.data_type == "matroska_block_additional")
