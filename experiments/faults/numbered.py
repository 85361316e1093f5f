"""Small videos whose frames carry their number, of every container, codec and kind, and two other readers for them.

A frame is eight blocks, black or white: its number in binary, which survives every codec. What is known from writing a
file (which frame is on show when, size, length) is the truth; ``plain`` and ``ffmpeg`` read it without any of our code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import av
import numpy as np

FPS, GOP, NUMBER = 10, 8, 40  # frames a second, from one key frame to the next, in all
HEIGHT, WIDTH = 48, 96

# Container: its format, options, and what it can hold; the first name of a codec is the encoder.
H26X, VPX, MPEG = ("libx264", "libx265"), ("libvpx", "libvpx-vp9"), ("mpeg4", "mpeg2video", "mjpeg")
CONTAINERS: dict[str, tuple[str, ...]] = {
    "mp4": (*H26X, "libvpx-vp9", "libsvtav1", *MPEG),
    "fragmented.mp4": (*H26X, "libvpx-vp9", "libsvtav1"),
    "mov": (*H26X, "mpeg4", "mjpeg", "prores_ks", "qtrle", "png"),
    "mkv": (*H26X, *VPX, "libsvtav1", *MPEG, "ffv1"),
    "webm": (*VPX, "libsvtav1"),
    "avi": ("libx264", *MPEG, "msmpeg4", "ffv1", "huffyuv"),
    "ts": (*H26X, "mpeg2video", "mpeg4"),
    "mpg": ("mpeg1video", "mpeg2video"),
    "flv": ("libx264", "flv"),
    "wmv": ("wmv1", "wmv2", "msmpeg4", "libx264"),
    "ogv": ("vp8",),
    "gif": ("gif",),
}
MUXERS = {"fragmented.mp4": "mp4", "mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "ogv": "ogg"}
ENCODERS = {"vp8": "libvpx"}  # codec names that only say which codec
SOUNDS = {"webm": "libopus", "ogv": "libopus", "mpg": "mp2", "gif": "", "wmv": "wmav2", "avi": "mp2"}
PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "qtrle": "rgb24", "png": "rgb24", "gif": "rgb8"}
PIXELS |= {"ffv1": "yuv444p", "huffyuv": "yuv422p"}
REORDERING = ("libx264", "libx265", "mpeg4", "mpeg2video", "mpeg1video")  # codecs with B-frames
CONSTANT_RATE = ("mpeg1video", "mpeg2video", "mpeg4")  # rates of a table, or no free times
KINDS = (
    "plain", "b_frames", "open_gop", "late", "late_alone", "longer_sound", "rotation", "vfr", "odd_size", "edit_list",
    "cut", "cut_open", "joined",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    container: str
    codec: str
    kind: str

    def __str__(self) -> str:
        return f"{self.container} {self.codec} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file and the truth about it. Times in seconds on the clock of the file, rising."""

    path: Path
    times_s: Sequence[float]  # frame ``numbers[k]`` is on show from ``times_s[k]``
    numbers: Sequence[int]
    end_s: float
    size: tuple[int, int]  # height, width
    turned: int = 0  # quarter turns counterclockwise
    refusal: str = ""  # the reason with which it should be refused
    tolerance_s: float = field(default=1.5 / FPS)

    def number_at(self, time_s: float) -> int:
        """The last frame that began; before the first one its first."""
        return self.numbers[max(int(np.searchsorted(self.times_s, time_s, side="right")) - 1, 0)]

    def moments(self) -> list[float]:
        """The middle of every frame, and of the time before the first one."""
        edges = sorted({0.0, *(time_s for time_s in self.times_s if time_s > 0), self.end_s})
        return [(start_s + end_s) / 2 for start_s, end_s in zip(edges, edges[1:])]


def specs() -> Iterator[Spec]:
    """All that make sense."""
    for container, codecs in CONTAINERS.items():
        for codec in codecs:
            yield from (Spec(container, codec, kind) for kind in KINDS if makes_sense(container, codec, kind))


def makes_sense(container: str, codec: str, kind: str) -> bool:
    is_mov = container in ("mp4", "mov")
    match kind:
        case "cut":
            return container != "gif"  # no picture of which stands alone
        case "b_frames":
            return codec in REORDERING and container != "wmv"
        case "open_gop" | "cut_open":
            return codec in ("libx264", "libx265", "mpeg2video") and container not in ("avi", "wmv", "flv")
        case "late" | "longer_sound":
            return SOUNDS.get(container, "aac") != "" and not (kind == "late" and container == "avi")
        case "late_alone":
            return is_mov
        case "rotation" | "edit_list":
            return is_mov and codec not in ("qtrle", "png") if kind == "edit_list" else is_mov
        case "vfr":
            return container not in ("avi", "mpg", "gif", "ogv") and codec not in CONSTANT_RATE
        case "odd_size":
            return codec in ("ffv1", "qtrle", "png", "libvpx-vp9", "gif", "mpeg4", "mjpeg", "msmpeg4", "flv")
    return True


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """[height, width, 3] uint8: two rows of four blocks, the lowest bit first."""
    bits = (number >> np.arange(8) & 1).reshape(2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return np.repeat((bits[rows][:, columns] * 220 + 18).astype(np.uint8)[..., None], 3, axis=2)


def number_of(pixels: np.ndarray) -> int:
    """The number of a picture of any size; -1 where a block is neither black nor white."""
    height, width = pixels.shape[:2]
    number = 0
    for bit in range(8):
        row, column = divmod(bit, 4)
        top, left = (2 * row + 1) * height // 4, (2 * column + 1) * width // 8
        level = pixels[top - 3 : top + 3, left - 3 : left + 3].mean()
        if 90 < level < 165:
            return -1
        number |= int(level > 128) << bit
    return number


def make(spec: Spec, folder: Path) -> Made:
    """Write the file. ValueError where FFmpeg cannot."""
    path = folder / f"{spec.codec}_{spec.kind}.{spec.container}"
    rate = 25 if spec.codec in ("mpeg1video", "mpeg2video") else FPS
    height, width = (HEIGHT - 1, WIDTH - 1) if spec.kind == "odd_size" else (HEIGHT, WIDTH)
    ticks = list(range(NUMBER))
    if spec.kind == "vfr":
        ticks = np.cumsum([0, *np.random.default_rng(7).integers(1, 6, NUMBER - 1)]).tolist()
    start_s, skip = 0.0, 0
    sound_s = {"late": 2.0 + NUMBER / rate, "longer_sound": 3.0 + NUMBER / rate}.get(spec.kind, 0.0)
    if spec.kind in ("late", "late_alone"):
        start_s = 2.0
    if spec.kind in ("cut", "cut_open", "edit_list"):
        skip = 2 * GOP  # packets before that key frame are left out
    hidden = 3 if spec.kind == "edit_list" else 0  # frames before time 0
    write(path, spec, ticks, rate, (height, width), start_s=start_s, skip=skip, hidden=hidden, sound_s=sound_s)
    first = ticks[skip + hidden]
    times_s = [start_s + (tick - first) / rate for tick in ticks[skip + hidden :]]
    numbers = list(range(skip + hidden, NUMBER))
    end_s, refusal = times_s[-1] + 1 / rate, ""
    if spec.kind == "joined":
        path.write_bytes(path.read_bytes() * 2)
        if spec.container in ("avi", "gif"):  # whose demuxers go on with the clock
            times_s, numbers = [*times_s, *(end_s + time_s for time_s in times_s)], numbers * 2
            end_s *= 2
        else:
            refusal = "joined"
    size = (width, height) if spec.kind == "rotation" else (height, width)
    return Made(
        path=path, times_s=times_s, numbers=numbers, end_s=end_s, size=size, refusal=refusal,
        turned=1 if spec.kind == "rotation" else 0, tolerance_s=1.5 / rate,
    )  # fmt: skip


def write(
    path: Path,
    spec: Spec,
    ticks: Sequence[int],
    rate: int,
    size: tuple[int, int],
    *,
    start_s: float,
    skip: int,
    hidden: int,
    sound_s: float,
) -> None:
    """Encode the pictures, and leave out the packets before the ``skip``-th one as a cut without encoding does."""
    container_options = {"movflags": "frag_keyframe+empty_moov"} if spec.container == "fragmented.mp4" else {}
    muxer = MUXERS.get(spec.container, spec.container)
    with av.open(str(path), "w", format=muxer, container_options=container_options) as file:
        encoder = ENCODERS.get(spec.codec, spec.codec)
        stream: Any = file.add_stream(encoder, rate=rate, options=encoder_options(spec))
        stream.height, stream.width = size
        stream.pix_fmt = PIXELS.get(spec.codec, "yuv420p")
        stream.codec_context.gop_size = GOP
        stream.codec_context.time_base = Fraction(1, rate)
        reorders = spec.kind in ("b_frames", "open_gop", "cut_open", "edit_list") and spec.codec in REORDERING
        if spec.codec != "libx265":
            stream.codec_context.max_b_frames = 2 if reorders else 0
        if spec.kind == "rotation":
            stream.set_display_rotation(90)
        sound: Any = None
        if sound_s:
            codec = "mp2" if spec.container == "ts" else SOUNDS.get(spec.container, "aac")
            sound = file.add_stream(codec, rate=48000, layout="mono")
            sound.bit_rate = 64000
        packets = []
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if sound is not None:
            file.mux(tone(sound, sound_s))
        base = packets[0].time_base
        keys = [packet.pts for packet in packets if packet.is_keyframe]
        unit = Fraction(1, rate) / base
        first = min(keys, key=lambda pts: abs(pts - ticks[skip] * unit)) if skip else keys[0]
        begins = next(at for at, packet in enumerate(packets) if packet.pts == first)
        shift = round(Fraction(start_s) / base) - first - round(hidden * unit) + keys[0] * (not skip)
        for packet in packets[begins:]:
            packet.pts += shift
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.stream = stream
            file.mux(packet)


def encoder_options(spec: Spec) -> dict[str, str]:
    is_open = spec.kind in ("open_gop", "cut_open")
    reorders = is_open or spec.kind in ("b_frames", "edit_list")
    match spec.codec:
        case "libx264":
            return {"preset": "veryfast", "crf": "10", "threads": "1", "x264-params": f"open-gop={int(is_open)}:"
                    f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes={2 * reorders}:b-adapt=0"}  # fmt: skip
        case "libx265":
            params = f"log-level=none:open-gop={int(is_open)}:pools=none:frame-threads=1:keyint={GOP}:min-keyint={GOP}"
            return {"preset": "ultrafast", "x265-params": f"{params}:scenecut=0:bframes={2 * reorders}:b-adapt=0"}
        case "libsvtav1":
            return {"preset": "12", "crf": "20", "svtav1-params": f"lp=1:keyint={GOP}"}
        case "libvpx" | "libvpx-vp9" | "vp8":
            return {"deadline": "realtime", "cpu-used": "5", "b": "400k", "lag-in-frames": "0"}
        case "mpeg1video" | "mpeg2video" if not is_open:
            return {"b": "900k", "flags": "+cgop", "sc_threshold": "1000000000"}
    return {} if spec.codec in ("gif", "ffv1", "huffyuv", "qtrle", "png", "prores_ks") else {"b": "900k"}


def tone(sound: Any, seconds: float) -> list[av.Packet]:
    """Packets of that much silence."""
    rate = sound.codec_context.sample_rate
    resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=rate)
    packets: list[av.Packet] = []
    step = sound.codec_context.frame_size or 1024
    for start in range(0, int(rate * seconds), step):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, step), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for each in resampler.resample(frame):
            packets += sound.encode(each)
    return packets + list(sound.encode(None))


Read = Callable[[Path], tuple[list[float], list[int]]]


def plain(path: Path) -> tuple[list[float], list[int]]:
    """Times and numbers of all frames: decoded from the first to the last with the container's times, no more."""
    times, numbers = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        zero_s = (container.start_time or 0) / av.time_base
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                if frame.time is not None:
                    times.append(frame.time - zero_s)
                    numbers.append(number_of(frame.to_ndarray(format="rgb24")))
    return times, numbers


def ffmpeg(path: Path) -> tuple[list[float], list[int]]:
    """The same by FFmpeg's command line, with its own conversion; it says itself when the file starts."""
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-threads", "1", "-noautorotate", "-copyts", "-i", str(path)]
    command += ["-map", "0:v:0", "-vsync", "passthrough", "-vf", f"showinfo,scale={WIDTH}:{HEIGHT}"]
    done = subprocess.run([*command, "-pix_fmt", "gray", "-f", "rawvideo", "-"], capture_output=True, timeout=60)
    start = re.search(rb"Duration:.*start: (-?[\d.]+)", done.stderr)
    zero_s = max(float(start[1]), 0.0) if start else 0.0
    times = [float(time) - zero_s for time in re.findall(rb"pts_time:\s*(-?[\d.]+)", done.stderr)]
    pixels = np.frombuffer(done.stdout, np.uint8)
    frames = pixels[: len(pixels) // (HEIGHT * WIDTH) * HEIGHT * WIDTH].reshape(-1, HEIGHT, WIDTH, 1)
    return times[: len(frames)], [number_of(each) for each in frames]


def second_readers() -> dict[str, Read]:
    """The command line only where it is installed."""
    return {"plain": plain} | ({"ffmpeg": ffmpeg} if shutil.which("ffmpeg") else {})
