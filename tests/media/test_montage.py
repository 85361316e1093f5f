"""What is on show when: played time, segments and effects, on sources whose frames are numbered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.errors import VideoError
from vidbridge.media.cuts import alternate
from vidbridge.media.effects import EFFECTS, function_of
from vidbridge.media.frame_budget import FrameBudget
from vidbridge.media.montage import render
from vidbridge.types import Effect, Montage, Segment, VideoRef

FPS = 8
EVERY_FRAME = FrameBudget(fps=FPS, max_frames=10**6, min_pixels=1, max_pixels=1)


class Numbered:
    """A source of which frame k, at k / 8 s, has the grey level first + k; what is below the middle is black."""

    def __init__(self, num_frames, first=1, height=4, width=4):
        self.frames = np.zeros((num_frames, height, width, 3), np.uint8)
        self.frames[:, : height // 2] = np.arange(first, first + num_frames)[:, None, None, None]
        self.duration_s, self.height, self.width = num_frames / FPS, height, width

    def frames_at(self, times_s):
        times_s = list(times_s)
        assert times_s == sorted(times_s), "files are read forwards"
        return (self.frames[int(time_s * FPS)] for time_s in times_s)


def played(*films, segments=(), effects=(), budget=EVERY_FRAME, sources=None):
    """The number of each frame by its upper left pixel, and its time."""
    sources = sources or tuple(VideoRef(path=f"film {number}") for number in range(len(films)))
    montage = Montage(sources=sources, segments=tuple(segments), effects=tuple(effects))
    clip = render(montage, dict(enumerate(films)), budget)
    return clip.frames[:, 0, 0, 0].tolist(), clip.times_s


def part(source, start_s, end_s, speed=1.0):
    return Segment(source=source, start_s=start_s, end_s=end_s, speed=speed)


def test_segments_come_one_after_another_and_the_times_are_those_of_watching():
    numbers, times_s = played(Numbered(4), Numbered(4, first=11), segments=[part(1, 0, 0.25), part(0, 0, 0.5)])
    assert numbers == [11, 12, 1, 2, 3, 4]
    assert times_s.tolist() == [(k + 0.5) / 8 for k in range(6)]


def test_a_removed_span_shortens_and_slow_motion_lengthens():
    # 8 frames without the third to the sixth; then the first two at half, the others at twice their speed
    assert played(Numbered(8), segments=[part(0, 0, 0.25), part(0, 0.75, 1.0)])[0] == [1, 2, 7, 8]
    numbers, times_s = played(Numbered(8), segments=[part(0, 0, 0.25, 0.5), part(0, 0.25, 1.0, 2.0)])
    # in the fast part a frame is taken at 1/8 s, 3/8 s and 5/8 s after 0.25 s
    assert numbers == [1, 1, 2, 2, 4, 6, 8]
    assert times_s[-1] == 6.5 / 8  # 0.5 s and 0.375 s are 7 frames


@given(seed=st.integers(0, 2**32 - 1), num=st.tuples(st.integers(24, 40), st.integers(24, 40)))
def test_alternating_loses_no_frame_and_repeats_none(seed, num):
    segments = alternate((num[0] / FPS, num[1] / FPS), (1.5, 2.0), np.random.default_rng(seed))
    on_frames = [
        part(each.source, np.ceil(each.start_s * FPS) / FPS, np.ceil(each.end_s * FPS) / FPS) for each in segments
    ]
    numbers, times_s = played(Numbered(num[0]), Numbered(num[1], first=101), segments=on_frames)
    assert [n for n in numbers if n < 100] == list(range(1, 1 + num[0]))
    assert [n for n in numbers if n > 100] == list(range(101, 101 + num[1]))
    assert times_s == pytest.approx((np.arange(sum(num)) + 0.5) / FPS)


def test_five_sources_in_a_shuffled_order():
    films = [Numbered(3, first=10 * number) for number in range(1, 6)]
    segments = [part(source, 0.0, 0.25) for source in (3, 0, 4, 2, 1)]
    assert played(*films, segments=segments)[0] == [40, 41, 10, 11, 50, 51, 30, 31, 20, 21]


def test_a_source_counts_from_where_its_part_starts_and_ends_with_its_file():
    sources = (VideoRef(path="a.mp4", start_s=0.5, end_s=2.0), VideoRef(path="b.mp4"))
    films = Numbered(8), Numbered(8, first=11)
    # a has half a second after its start: of the second segment that asks for more there is nothing left
    segments = [part(0, 0.25, 1.5), part(1, 0.0, 0.25), part(0, 0.5, 0.75)]
    assert played(*films, sources=sources, segments=segments)[0] == [7, 8, 11, 12]
    assert played(*films[:1], sources=sources[:1])[0] == [5, 6, 7, 8]
    with pytest.raises(VideoError, match="b.mp4: is 1.00 s long, it is shown from 1.50 s on .out_of_range"):
        played(*films, sources=sources, segments=[part(0, 0.0, 0.5), part(1, 1.5, 2.0)])


@pytest.mark.parametrize(
    ("effect", "numbers"),
    [
        (Effect(name="dark", start_s=0.25, end_s=0.5), [1, 2, 0, 0, 5, 6, 7, 8]),
        (Effect(name="dark", start_s=0.75), [1, 2, 3, 4, 5, 6, 0, 0]),
        (Effect(name="reverse"), [8, 7, 6, 5, 4, 3, 2, 1]),
        (Effect(name="reverse", start_s=0.25, end_s=0.625), [1, 2, 5, 4, 3, 6, 7, 8]),
        (Effect(name="rotate", start_s=0.5), [1, 2, 3, 4, 0, 0, 0, 0]),  # the lower half is black
    ],
)
def test_an_effect_changes_what_its_interval_shows_and_no_time(effect, numbers):
    plain, times_s = played(Numbered(8))
    assert plain == [1, 2, 3, 4, 5, 6, 7, 8]
    found, times_then_s = played(Numbered(8), effects=[effect])
    assert found == numbers and np.array_equal(times_then_s, times_s)


def test_a_shuffle_shows_every_frame_of_its_interval_once_and_the_same_again():
    effects = [Effect(name="shuffle", end_s=0.75, params={"seed": seed}) for seed in (0, 1, 0)]
    one, other, again = (played(Numbered(8), effects=[effect])[0] for effect in effects)
    for numbers in (one, other):
        assert sorted(numbers[:6]) == [1, 2, 3, 4, 5, 6] != numbers[:6] and numbers[6:] == [7, 8]
    assert one == again != other


def test_effects_come_in_their_order_and_count_in_played_time():
    """The second half of the second film, 0.75 s to 1 s of the whole, is dark and then shown before the rest."""
    segments = [part(1, 0.0, 0.5), part(0, 0.0, 0.5)]
    effects = [Effect(name="dark", start_s=0.75), Effect(name="reverse", start_s=0.5)]
    assert played(Numbered(4), Numbered(4, first=11), segments=segments, effects=effects)[0] == [
        *(11, 12, 13, 14, 0, 0, 2, 1)
    ]


def corner_levels(pixels):
    return [pixels[y, x, 0] for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


class Corners(Numbered):
    """Every frame has its own grey level in each corner: 10 and 20 above 30 and 40."""

    def __init__(self, height=8, width=8):
        super().__init__(4, height=height, width=width)
        for level, (y, x) in zip((10, 20, 30, 40), ((0, 0), (0, 1), (1, 0), (1, 1))):
            tall, wide = height // 2, width // 2
            self.frames[:, y * tall : (y + 1) * tall, x * wide : (x + 1) * wide] = level


@pytest.mark.parametrize(
    ("effect", "levels"),
    [
        (Effect(name="mirror"), [20, 10, 40, 30]),
        (Effect(name="rotate"), [40, 30, 20, 10]),
        (Effect(name="rotate", params={"degrees": 90}), [20, 40, 10, 30]),
        (Effect(name="rotate", params={"degrees": 270}), [30, 10, 40, 20]),
        (Effect(name="crop", params={"left": 0.5, "top": 0.0, "right": 1.0, "bottom": 0.5}), [20, 20, 20, 20]),
        (Effect(name="crop", params={"left": 0.25, "top": 0.25, "right": 0.75, "bottom": 0.75}), [10, 20, 30, 40]),
    ],
)
def test_what_is_done_to_a_picture(effect, levels):
    montage = Montage(sources=(VideoRef(path="a"),), effects=(effect,))
    clip = render(montage, {0: Corners()}, EVERY_FRAME)
    assert clip.frames.shape == (4, 8, 8, 3)
    # enlarged pictures go over their edges a little
    assert np.abs(np.array(corner_levels(clip.frames[0]), int) - levels).max() <= 2


def test_a_picture_that_stands_on_its_side_is_framed():
    effect = Effect(name="rotate", params={"degrees": 90})
    clip = render(Montage(sources=(VideoRef(path="a"),), effects=(effect,)), {0: Corners(8, 16)}, EVERY_FRAME)
    assert clip.frames.shape == (4, 8, 16, 3)
    # 16 x 8 stood up is 8 x 16, at half its size 4 wide and 8 tall
    assert not clip.frames[:, :, :6].any() and not clip.frames[:, :, 10:].any() and clip.frames[:, :, 6:10].all()


def test_every_effect_takes_an_interval_of_one_frame_or_says_why_not():
    params = {"shuffle": {"seed": 0}, "crop": {"left": 0, "top": 0, "right": 1, "bottom": 1}}
    for name in EFFECTS:
        effect = Effect(name=name, start_s=0.0, end_s=0.125, params=params.get(name, {}))
        if name == "shuffle":
            with pytest.raises(ValueError, match="shuffle: a single frame lies in the interval"):
                played(Numbered(8), effects=[effect])
        else:
            assert played(Numbered(8), effects=[effect])[0][1:] == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (Effect(name="drak"), "there is no effect 'drak' .*crop, dark, mirror"),
        (Effect(name="no_such_module.blur"), "there is no effect 'no_such_module.blur'"),
        (Effect(name="crop", params={"left": 0.1}), "effect 'crop': missing a required argument: 'top'"),
        (Effect(name="dark", params={"grey": 3}), "effect 'dark': got an unexpected keyword argument 'grey'"),
    ],
)
def test_a_wrong_name_or_parameter_is_told_before_anything_is_read(effect, message):
    with pytest.raises(ValueError, match=message):
        function_of(effect)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name": "rotate", "params": {"degrees": 45}}, "degrees must be 90, 180 or 270, got 45"),
        ({"name": "crop", "params": {"left": 1, "top": 0, "right": 0, "bottom": 1}}, "crop needs 0 <= left < right"),
        ({"name": "mirror", "start_s": 1.0}, "no frame between 1.0 s and the end: mirror would change nothing"),
        ({"name": f"{__name__}.half"}, "made 4 frames of 8: it must keep them all"),
        ({"name": f"{__name__}.smaller"}, r"made \(2, 2, 3\) uint8 of a picture that is \(4, 4, 3\) uint8"),
        ({"name": f"{__name__}.brighter"}, "made .* float64 of a picture that is .* uint8"),
    ],
)
def test_an_effect_that_does_not_do_what_it_must_is_named(params, message):
    with pytest.raises(ValueError, match=message):
        played(Numbered(8), effects=[Effect(**params)])


def test_a_look_that_draws_into_the_picture_changes_no_other_frame():
    """At half the speed every picture is shown twice; the first time it is painted over."""
    effects = [Effect(name=f"{__name__}.painted", start_s=k / 4, end_s=k / 4 + 0.125) for k in range(4)]
    numbers, _ = played(Numbered(4), segments=[part(0, 0.0, 0.5, 0.5)], effects=effects)
    assert numbers == [99, 1, 99, 2, 99, 3, 99, 4]


def painted(frames):
    def look(pixels):
        pixels[:] = 99
        return pixels

    return [frame.with_look(look) for frame in frames]


def half(frames):
    return frames[::2]


def smaller(frames):
    return [frame.with_look(lambda pixels: pixels[::2, ::2]) for frame in frames]


def brighter(frames):
    return [frame.with_look(lambda pixels: pixels * 1.5) for frame in frames]


WRONG = [part(1, 0, 1), part(-1, 0, 1), part(0, 1, 1), part(0, -1, 1), part(0, 0, 1, 0.0), part(0, 0, float("nan"))]


@pytest.mark.parametrize("segment", WRONG)
def test_a_segment_that_shows_nothing_is_refused(segment):
    with pytest.raises(ValueError, match="Segment"):
        Montage(sources=(VideoRef(path="a"),), segments=(segment,))
