"""Kinds of files that people have and that were refused or read wrong: each made small, with what is right."""

import io
import json
import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideData
from PIL import Image

from experiments.faults.numbered import NUMBER, Spec, make, number_of, picture
from tests.media.videos import (
    AS_IT_IS,
    FPS,
    LEVELS,
    assert_counts,
    counting,
    dark,
    grey,
    in_turn,
    shown,
    write_video,
)
from vidbridge.data.formats.annotations import read_annotations
from vidbridge.errors import VideoError
from vidbridge.media.decode import decode
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.reader import VideoReader
from vidbridge.media.video_file import VideoFile
from vidbridge.types import Montage, VideoRef


def numbers_of(path, times_s):
    with VideoFile(str(path)) as file:
        return [number_of(pixels) for pixels in file.frames_at(times_s)]


def duration_s(path):
    with VideoFile(str(path)) as file:
        return file.duration_s


def refusal(path):
    with pytest.raises(VideoError) as error:
        shown(path)
    return error.value


MIDDLES = (np.arange(NUMBER) + 0.5) / FPS


def test_times_that_are_those_of_decoding(tmp_path):
    """As cameras and old muxers write FLV: B-frames, and for each packet the time at which it is decoded."""
    path = tmp_path / "a.flv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"bf": "2", "x264-params": "b-adapt=0:keyint=8"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture(number), format="rgb24") for number in range(NUMBER)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for place, packet in enumerate(packets):
            packet.pts = packet.dts = place
            packet.time_base = Fraction(1, FPS)
            file.mux(packet)
    assert numbers_of(path, MIDDLES) == list(range(NUMBER))


def test_side_data_without_a_name(tmp_path):
    """EXIF in the pictures of a Motion JPEG: type 31, which PyAV 18.1 does not know."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuvj420p"
        for number in range(20):
            content = io.BytesIO()
            Image.fromarray(picture(number)).save(content, "jpeg", exif=exif, quality=95)
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, FPS)
            packet.is_keyframe = True
            file.mux(packet)
    assert numbers_of(path, MIDDLES[:20]) == list(range(20))
    with av.open(str(path)) as file:
        (frame, *_) = file.decode(video=0)
        assert any(each.type.name.startswith("UNNAMED") for each in frame.side_data)
    assert SideData["DISPLAYMATRIX"] is SideData(SideData.DISPLAYMATRIX.value)  # the others keep their names


@pytest.mark.parametrize("name", ["a.webm", "a.flv"])
def test_sound_that_is_longer_where_no_header_tells_it(tmp_path, name):
    """Browsers write no DURATION tag: renamed here, so that nobody knows it."""
    spec = Spec(name[2:], "libvpx" if name == "a.webm" else "libx264", "longer_sound")
    made = make(spec, tmp_path)
    made.path.write_bytes(made.path.read_bytes().replace(b"DURATION", b"XURATION"))
    assert duration_s(made.path) == pytest.approx(NUMBER / FPS, abs=0.11)
    assert numbers_of(made.path, MIDDLES) == list(range(NUMBER))


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "ts"])
def test_what_is_hidden_is_what_the_annotation_says(tmp_path, container):
    """Pictures from 2 s on: what is annotated at 4 to 5 s are frames 20 to 29."""
    made = make(Spec(container, "libvpx" if container == "webm" else "libx264", "late"), tmp_path)
    assert duration_s(made.path) == pytest.approx(2 + NUMBER / FPS, abs=0.11)
    assert numbers_of(made.path, [0.05, 1.05, 1.95]) == [0, 0, 0]
    budget = FrameBudget(fps=10.0, max_frames=64, min_pixels=1, max_pixels=1)
    clip = decode(Montage(sources=(VideoRef(path=str(made.path), end_s=6.0),), effects=(dark(4.0, 5.0),)), budget)
    seen = {number_of(pixels) for pixels, time_s in zip(clip.frames, clip.times_s) if pixels.any() and time_s > 2.1}
    assert seen == set(range(1, NUMBER)) - set(range(20, 30))


def test_a_header_that_is_too_short(tmp_path):
    """An FLV that says 1 s; the pictures after it are read."""
    made = make(Spec("flv", "libx264", "plain"), tmp_path)
    content = made.path.read_bytes()
    place = content.index(b"duration") + len(b"duration") + 1
    made.path.write_bytes(content[:place] + struct.pack(">d", 1.0) + content[place + 8 :])
    assert duration_s(made.path) == pytest.approx(NUMBER / FPS, abs=0.11)
    assert numbers_of(made.path, MIDDLES) == list(range(NUMBER))


def test_times_far_behind_the_decoding_times(tmp_path):
    """An mp4 of which the track is 4 s long by its decoding times, and its last picture is due at 9 s."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"bf": "0", "x264-params": "keyint=8"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture(number), format="rgb24") for number in range(NUMBER)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for place, packet in enumerate(packets):
            packet.pts = 90 if place == NUMBER - 1 else place
            packet.dts, packet.time_base = place, Fraction(1, FPS)
            file.mux(packet)
    assert duration_s(path) == pytest.approx(9.1, abs=0.11)
    assert numbers_of(path, [3.85, 6.0, 8.9, 9.05]) == [38, 38, 38, 39]


def test_a_clip_cut_at_a_key_frame_whose_books_name_what_was_cut_off(tmp_path):
    """H.264 as video sites write it: the I-frame tells the decoder to forget frames from before the cut."""
    params = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-pyramid=normal:ref=4"
    options = {"preset": "slow", "x264-params": params}
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture(number), format="rgb24") for number in range(60)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        start = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
        first = packets[start].pts
        for packet in packets[start:]:
            if packet.pts >= first or packet.is_keyframe:
                packet.pts, packet.dts = packet.pts - first, packet.dts - first
                file.mux(packet)
    with VideoFile(str(path)) as file:
        zero, length = round(first * packets[0].time_base * FPS), file.duration_s
    moments = np.arange(0.45, length - 0.1, 0.1)
    assert np.diff(numbers_of(path, moments)).tolist() == [1] * (len(moments) - 1)
    assert numbers_of(path, [length - 0.05]) == [59] and zero > 0


def test_files_behind_one_another_are_noticed(tmp_path):
    made = make(Spec("ts", "libx264", "joined"), tmp_path)
    error = refusal(made.path)
    assert error.reason == "joined" and "several recordings in one" in error.detail


KINDS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n": "Git LFS",
    b"#EXTM3U\n#EXTINF:4,\na.ts\n": "HLS playlist",
    b"<!DOCTYPE html><html>404</html>": "web page",
    b".RMF\0\0\0\x12": "RealMedia",
    bytes(5000): "zero bytes",
    b"PK\x03\x04": "ZIP",
}


@pytest.mark.parametrize("content", KINDS)
def test_what_is_not_read_is_called_by_its_kind(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content + bytes(200))
    error = refusal(tmp_path / "a.mp4")
    assert error.reason == "not_a_video" and KINDS[content] in error.detail


@pytest.mark.parametrize("name", ["part  two.mp4", " a.mp4", "a\tb.mp4", "a .mp4"])
def test_names_are_taken_as_they_stand(tmp_path, name):
    (tmp_path / "known.jsonl").write_text(json.dumps({"video": name, "uid": f"of {name}", "caption": "a  b"}))
    (known,), problems = read_annotations(tmp_path / "known.jsonl", "{id}.mp4")
    assert (known.video, known.uid, known.caption, problems) == (name, f"of {name}", "a b", [])


def test_an_annotation_that_is_longer_than_its_file(tmp_path):
    """4 s of pictures, 5 s annotated: as far as the file goes, in one piece and in several."""
    counting(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", [grey(LEVELS * k) for k in range(40)])
    a, b = (VideoRef(path=str(tmp_path / name), end_s=5.0) for name in ("a.mp4", "b.mp4"))
    hidden = decode(Montage(sources=(a,), effects=(dark(1.0, 2.0),)), AS_IT_IS)
    assert len(hidden.frames) == 8 and np.flatnonzero(hidden.frames.mean(axis=(1, 2, 3)) < 1).tolist() == [2, 3]
    assert_counts(decode(Montage(sources=(a,)), AS_IT_IS))
    parts = (replace(a, end_s=2.0), replace(b, end_s=2.0), replace(a, start_s=2.0), replace(b, start_s=2.0))
    mixed = decode(in_turn(*parts, replace(a, start_s=4.5)), AS_IT_IS)
    assert mixed.times_s[-1] == 7.75  # 8 s in all
    with pytest.raises(VideoError, match="4.00 s long"):
        decode(in_turn(b, replace(a, start_s=4.5)), AS_IT_IS)


def test_a_hub_snapshot_is_recognised(tmp_path):
    """Links into blobs two folders up, as huggingface_hub keeps what it downloads."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1f2e"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    counting(blobs / "a.mp4").rename(blobs / "0c5e")
    (snapshot / "a.mp4").symlink_to("../../blobs/0c5e")
    with pytest.raises(VideoError, match="Hugging Face hub snapshot.*--local-dir"):
        VideoReader(str(snapshot))(VideoRef(path="a.mp4"), AS_IT_IS)
