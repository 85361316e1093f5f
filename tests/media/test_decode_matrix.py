"""Containers x codecs x kinds of files, and damaged ones: experiments.faults.decode_matrix and decode_fuzz."""

from dataclasses import replace

import pytest

from experiments.faults.decode_fuzz import Fuzz, SecondReader
from experiments.faults.decode_matrix import problem, problem_of
from experiments.faults.numbered import KINDS, Spec, make, number_of, picture, specs

MOST_USED = ("libx264", "libvpx", "mpeg2video", "mpeg4", "wmv2", "flv", "gif", "vp8")
QUICK = [spec for spec in specs() if spec.codec in MOST_USED and (spec.codec == "libx264" or spec.kind != "plain")]


@pytest.fixture
def fuzz(tmp_path):
    made = Fuzz(tmp_path)
    yield made
    made.close()


def test_pictures_say_their_number():
    for height, width in ((48, 96), (47, 95), (24, 48)):
        assert [number_of(picture(number, height, width)) for number in range(256)] == list(range(256))


def test_a_picture_too_much_or_the_wrong_size_is_noticed(tmp_path):
    """The matrix can fail."""
    made = make(Spec("mp4", "libx264", "b_frames"), tmp_path)
    assert problem_of(made) is None
    moved = replace(made, times_s=[time_s + 0.1 for time_s in made.times_s], end_s=made.end_s + 0.1)
    assert "shows" in (problem_of(moved) or "")
    assert "instead of" in (problem_of(replace(made, size=(96, 48))) or "")


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_frames_or_a_refusal_that_is_intended(tmp_path, kind):
    found = {str(spec): problem(spec, tmp_path, with_command=False) for spec in QUICK if spec.kind == kind}
    assert found and not any(found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("container", sorted({spec.container for spec in specs()}))
def test_every_codec(tmp_path, container):
    found = {str(spec): problem(spec, tmp_path) for spec in specs() if spec.container == container}
    assert found and not any(found.values()), found


def test_the_other_reader_of_the_fuzz_reads(tmp_path):
    """Were it blind, every wrong frame would pass as one that we alone can read."""
    made = make(Spec("mp4", "libx264", "b_frames"), tmp_path)
    second = SecondReader()
    times_s, numbers = second.read(made.path)
    assert [made.number_at(time_s + 0.01) for time_s in times_s] == numbers == list(made.numbers)
    made.path.write_bytes(b"no video")
    assert second.read(made.path) is None
    second._pool.shutdown()


# Wrong once: a first key frame that is damaged, hidden or lost, times that jump and fall, a packet with a hole,
# pictures that an AVI's decoder swallowed.
ONCE_WRONG = (5, 53, 131, 167, 311, 362, 468, 489, 553, 684, 736, 809, 1277, 1480, 1891, 1893, 1910)


def test_damaged_files_that_were_read_wrong_once(fuzz):
    found = {number: fuzz(number)[0] for number in ONCE_WRONG}
    assert not any(found.values()), found


def test_those_of_another_seed(tmp_path):
    """A beginning or a picture that a decoder swallowed, a time that goes back, a hidden key frame with a wrong bit."""
    fuzz = Fuzz(tmp_path, seed=7)
    found = {number: fuzz(number)[0] for number in (572, 672, 1415, 1821, 1930)}
    fuzz.close()
    assert not any(found.values()), found


@pytest.mark.slow
def test_damaged_files(fuzz):
    found = {number: fuzz(number)[0] for number in range(500)}
    assert not any(found.values()), found
