"""When the pictures of a file begin and end on a player's clock, by its packets where no header can be trusted."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Iterator

import av

from vidbridge.errors import VideoError
from vidbridge.media.clock import DECODE_ORDERED

TOLERANCE_S = 0.5  # a header may differ from the packets by so much, and a last frame stay on show for so long
MAX_STEP_BACK_S = 1.0  # decoding times never fall; in damaged streams they stumble
MAX_PAUSE_S = 10.0  # of a broadcast; more is another recording
TAIL = 32  # packets: reordering holds back 16 at most
MAX_REST = 2**20  # bytes behind the last packet that are looked at
# How a second file behind the first begins, where the demuxer stops before it and says nothing.
BEGINNINGS = {"flv": b"FLV\x01", "asf": bytes.fromhex("3026b2758e66cf11")}


@dataclass(frozen=True, slots=True)
class Extent:
    """Times in seconds. The container's ``zero_s`` is time 0 of the file, which is that of its earliest stream."""

    zero_s: float
    start_s: float  # of the first picture, by the container's clock
    duration_s: float  # from time 0 to the end of the pictures
    keys: tuple[int, ...]  # times of the key frames of a matroska file, in ticks of the stream


def measure(container: av.container.InputContainer, stream: av.VideoStream, path: str) -> Extent:
    """Look through a freshly opened ``container``, which stands anywhere afterwards.

    Raises VideoError with reason joined or no_duration.
    """
    name, base = container.format.name, float(stream.time_base or 0)
    boxes = _boxes(path) if "mov" in name else []
    if boxes.count(b"moov") > 1:
        raise _joined(path, "a second movie follows the first")
    start_s = (stream.start_time or 0) * base
    zero_s = min(max((container.start_time or 0) / av.time_base, 0.0), start_s)
    index = stream.index_entries
    if "mov" in name and b"moof" not in boxes and len(index) and index[0].timestamp > 0:
        # an empty edit: the track begins later than the movie, whose time 0 is fixed (ISO/IEC 14496-12, 8.6.6).
        # A first picture that is late for the sake of reordering has a decoding time of 0
        zero_s = 0.0
    keys = tuple(entry.timestamp for entry in _loaded_index(container, stream) if entry.is_keyframe)
    pictures_s, all_s = _ends(container, stream, keys, path)
    own_s = _own_end_s(stream)
    file_s = (container.duration or 0) / av.time_base
    if name == "asf":  # FFmpeg adds the start of a stream to the length of the file
        file_s = (stream.duration or 0) * base
    elif not any(each in name for each in ("matroska", "flv")):  # these two name the end
        file_s += (container.start_time or 0) / av.time_base
    if own_s is None and file_s > all_s + TOLERANCE_S:
        own_s = file_s  # nothing in the file lasts that long: its end is missing
    end_s = own_s if own_s is not None and pictures_s <= own_s + TOLERANCE_S else pictures_s
    if end_s <= zero_s:
        raise VideoError(path, "no_duration", "lasts no time at all")
    return Extent(zero_s, start_s, end_s - zero_s, keys if "matroska" in name else ())


def _own_end_s(stream: av.VideoStream) -> float | None:
    """Return the end that the header gives the pictures alone; of other containers FFmpeg knows the file's only."""
    has_own = any(each in stream.container.format.name for each in ("mov", "avi"))
    if has_own and stream.duration and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    return seconds(stream.metadata.get("DURATION", "")) or None


def _loaded_index(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.index.IndexEntry]:
    """The entries of a matroska file, which reads them when it seeks; nothing for other containers."""
    if "matroska" in container.format.name:
        with suppress(av.FFmpegError):
            container.seek(stream.start_time or 0, stream=stream)
        yield from stream.index_entries


def _ends(
    container: av.container.InputContainer, stream: av.VideoStream, keys: tuple[int, ...], path: str
) -> tuple[float, float]:
    """When the last picture ends, and the last packet of any stream, by the container's clock; 0 where there is none.

    An indexed file is read from near its end, any other one as a whole.
    """
    name, base, index = container.format.name, float(stream.time_base or 0), stream.index_entries
    whole = False
    with suppress(av.FFmpegError):
        if "mov" in name and len(index):
            container.seek(index[max(len(index) - TAIL, 0)].timestamp, any_frame=True, stream=stream)
        elif "matroska" in name and len(keys) > 1:
            container.seek(keys[-1], stream=stream)
        else:
            whole = True
            if "matroska" in name:
                container.seek(0)
    pictures = everything = newest = decoded = 0.0
    behind = 0  # the last packet
    frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    by_decoding = any(each in name for each in DECODE_ORDERED)
    with suppress(av.FFmpegError):  # damage is met again when frames are read
        for packet in container.demux():
            behind = max(behind, (packet.pos or 0) + packet.size)
            if not packet.size or packet.time_base is None or packet.is_discard:
                continue
            is_ours, unit = packet.stream.index == stream.index, float(packet.time_base)
            time = packet.dts if by_decoding or packet.pts is None else packet.pts
            if whole and time is not None and packet.dts is not None and time > packet.dts + MAX_PAUSE_S / unit:
                continue  # no picture waits so long to be shown: the time is damaged
            length_s = (packet.duration or 0) * unit or (frame_s if is_ours else 0.0)
            if is_ours:  # without a time it follows the one before, as all but the first picture in a block of MPEG
                decoded = (decoded if packet.dts is None else packet.dts * unit) + length_s
                pictures = max(pictures, decoded)
            if time is None:
                continue
            everything = max(everything, time * unit + length_s)
            if not is_ours:
                continue
            pictures = max(pictures, time * unit + length_s)
            if packet.dts is None or "mov" in name:  # whose times are sums
                continue
            now = packet.dts * base
            if newest and (now < newest - MAX_STEP_BACK_S or ("mpeg" in name and now > newest + MAX_PAUSE_S)):
                raise _joined(path, f"after {newest:.2f} s its clock goes on at {now:.2f} s")
            newest = max(now, newest)
    if name in BEGINNINGS and _rest(path, behind).find(BEGINNINGS[name]) >= 0:
        raise _joined(path, "a second file follows the first")
    return pictures, max(pictures, everything)


def _joined(path: str, how: str) -> VideoError:
    return VideoError(path, "joined", f"is several recordings in one: {how}; cut them apart, or join them with ffmpeg")


def _rest(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(MAX_REST)


def _boxes(path: str) -> list[bytes]:
    """The kinds of the boxes of an mp4 or mov file, in their order."""
    found: list[bytes] = []
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = 0
        while start + 8 <= end:
            file.seek(start)
            head = file.read(16)
            size = int.from_bytes(head[:4])
            if size == 1:  # it stands in the eight bytes behind the kind
                size = int.from_bytes(head[8:16])
            found.append(head[4:8])
            if size < 8:  # 0: the last one
                break
            start += size
    return found


def seconds(text: str) -> float:
    """
    >>> seconds("00:01:02.500000000"), seconds("soon")
    (62.5, 0.0)
    """
    try:
        hours, minutes, rest = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + rest
