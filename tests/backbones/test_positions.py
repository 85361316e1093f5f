"""Positions by hand, against the release that Qwen2.5-VL came with, and against the rule written token by token."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.backbones.positions_oracle import FILE, MERGE, VIDEO, ids_of
from vidbridge.backbones.mrope import mrope_positions


def positions_of(case):
    grids = torch.tensor([[t, h * MERGE, w * MERGE] for t, h, w, _ in case["videos"]], dtype=torch.long).reshape(-1, 3)
    positions, delta = mrope_positions(
        torch.tensor(ids_of(case)),
        grids,
        [seconds for *_, seconds in case["videos"]],
        vision_token_ids=(VIDEO,),
        merge_size=MERGE,
        tokens_per_second=2,
    )
    assert positions.dtype == torch.long
    return positions.tolist(), delta


@pytest.mark.parametrize(
    ("seconds", "times", "after"),
    [
        (0.5, [0, 1, 2, 3], 4),  # 2 positions a second: 0.5 s are 1 position; the last is 3, so the text is at 4
        (1.5, [0, 3, 6, 9], 10),
        (2.5, [0, 5, 10, 15], 16),
        (7.3, [0, 14, 29, 43], 44),  # 14.6, 29.2, 43.8, cut
        (0.25, [0, 0, 1, 1], 2),  # 0.5, 1, 1.5: time ends at 1, and so do the 2 rows and columns
        (0.1, [0, 0, 0, 0], 2),  # time stands still; rows and columns reach 1
    ],
)
def test_by_hand(seconds, times, after):
    """Three words, the border token, 4 grids of 2 x 2 tokens, the border token, two words."""
    positions, delta = positions_of({"before": 3, "videos": [[4, 2, 2, seconds]], "after": 2})
    first = 4
    tail = [first + after, first + after + 1, first + after + 2]
    time, height, width = positions
    assert time == [0, 1, 2, 3, *[first + each for each in times for _ in range(4)], *tail]
    assert height == [0, 1, 2, 3, *[first, first, first + 1, first + 1] * 4, *tail]
    assert width == [0, 1, 2, 3, *[first, first + 1] * 8, *tail]
    # the first completion token follows the last word
    assert len(time) + delta == first + after + 3


def test_two_videos_by_hand():
    """The second begins one after the border tokens that follow the first; width alone reaches farthest in it."""
    case = {"before": 1, "videos": [[2, 1, 1, 3.0], [1, 1, 4, 1.0]], "after": 1}
    positions, delta = positions_of(case)
    #  word border | video: 0 and 6 from 2 | borders 9 10 | video from 11, widths 11..14 | border, word
    assert positions[0] == [0, 1, 2, 8, 9, 10, 11, 11, 11, 11, 15, 16]
    assert positions[1] == [0, 1, 2, 2, 9, 10, 11, 11, 11, 11, 15, 16]
    assert positions[2] == [0, 1, 2, 2, 9, 10, 11, 12, 13, 14, 15, 16]
    assert 12 + delta == 17


@pytest.mark.parametrize(
    ("seconds", "times", "after"),
    [
        (1.5, [0, 3], 14),  # Qwen2.5-VL: two positions a second, so the second grid is 3 on, at 12; the border is 13
        (0.0, [0, 0], 12),  # a picture does not last; width reaches 1
    ],
)
def test_an_image_before_a_video_by_hand(seconds, times, after):
    """A word, border, an image of 2 x 5 tokens, two borders, two grids of 1 x 2 tokens, border."""
    word, border, image = VIDEO + 1, VIDEO + 2, VIDEO + 3
    ids = [word, border, *[image] * 10, border, border, *[VIDEO] * 4, border]
    grids = torch.tensor([[1, 2 * MERGE, 5 * MERGE], [2, MERGE, 2 * MERGE]])
    positions, delta = mrope_positions(
        torch.tensor(ids),
        grids,
        [0.0, seconds],
        vision_token_ids=(image, VIDEO),
        merge_size=MERGE,
        tokens_per_second=2,
    )
    # the image begins at 2 and is 5 wide: the borders are 7 and 8, the video begins at 9
    first = 9
    assert positions[0].tolist() == [0, 1, *[2] * 10, 7, 8, *[first + t for t in times for _ in range(2)], after - 1]
    assert positions[1].tolist() == [0, 1, *[2] * 5, *[3] * 5, 7, 8, *[first] * 4, after - 1]
    assert positions[2].tolist() == [0, 1, *[2, 3, 4, 5, 6] * 2, 7, 8, *[first, first + 1] * 2, after - 1]
    assert len(ids) + delta == after


def test_text_alone():
    assert positions_of({"before": 5, "videos": [], "after": 0}) == ([[0, 1, 2, 3, 4]] * 3, 0)


@pytest.mark.parametrize("case", json.loads(FILE.read_text()), ids=lambda case: str(case["videos"]))
def test_equal_to_the_release_that_the_model_came_with(case):
    assert positions_of(case) == (case["positions"], case["rope_delta"])


def by_token(case):
    """The rule again, one token after the other and in exact fractions of time."""
    table, largest = [], -1
    parts = [("text", case["before"])]
    for video in case["videos"]:
        parts += [("text", 1), ("video", video), ("text", 1)]
    parts.append(("text", case["after"]))
    for kind, part in parts:
        if kind == "text":
            for _ in range(part):
                largest += 1
                table.append((largest, largest, largest))
            continue
        grid_t, grid_h, grid_w, seconds = part
        start = largest + 1
        for i in range(grid_t):
            for y in range(grid_h):
                for x in range(grid_w):
                    table.append((start + math.floor(i * seconds * 2), start + y, start + x))
                    largest = max(largest, *table[-1])
    return [list(axis) for axis in zip(*table)], largest + 1 - len(table)


# eighths of a second are exact in 32 bits, so that both sides must cut at the same integer
videos = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 200).map(lambda n: n / 8))


@given(st.integers(1, 5), st.lists(videos.map(list), max_size=3), st.integers(0, 5))
def test_equal_to_the_rule_token_by_token(before, videos, after):
    case = {"before": before, "videos": videos, "after": after}
    assert positions_of(case) == by_token(case)
