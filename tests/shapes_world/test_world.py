"""The embedded world keeps its promises: every event shows, and nothing but the pixels tells which."""

from collections import Counter

import numpy as np
import pytest

from vidbridge.shapes_world.language import COLOURS, KINDS, SHAPES, read_events
from vidbridge.shapes_world.world import FPS, SIDE, Scene, Thing, after, caption, describe, draw_scene, render, states


def scenes(number=3000):
    rng = np.random.default_rng(0)
    return [draw_scene(rng, int(rng.integers(3, 6))) for _ in range(number)]


def test_events_change_what_they_say():
    thing = Thing("square", "red", "medium", (1, 1))
    assert after(thing, "moves left").cell == (0, 1) and after(thing, "moves down").cell == (1, 2)
    assert after(thing, "grows").size == "big" and after(thing, "shrinks").size == "small"
    assert after(thing, "turns blue").colour == "blue"
    assert after(thing, "spins") == after(thing, "hides") == thing
    # and what would change nothing, or leave the picture, is not possible
    assert after(Thing("square", "red", "big", (0, 0)), "grows") is None
    assert after(Thing("square", "red", "big", (0, 0)), "moves up") is None
    assert after(thing, "turns red") is None


def test_scenes_are_possible_and_varied():
    drawn = scenes()
    assert all(states(scene.actor, scene.kinds) for scene in drawn)
    assert {len(scene.kinds) for scene in drawn} == {3, 4, 5}
    assert all(len(set(scene.kinds)) == len(scene.kinds) for scene in drawn)
    bystanders = [scene for scene in drawn if scene.bystander]
    assert 0.25 < len(bystanders) / len(drawn) < 0.35
    for scene in bystanders:
        assert scene.bystander.shape != scene.actor.shape
        assert scene.bystander.cell not in {thing.cell for thing in states(scene.actor, scene.kinds)}
    for values, share in [
        (Counter(kind for scene in drawn for kind in scene.kinds[:1]), 1 / len(KINDS)),
        (Counter(scene.actor.shape for scene in drawn), 1 / len(SHAPES)),
        (Counter(scene.actor.colour for scene in drawn), 1 / len(COLOURS)),
    ]:
        # 3000 draws: a standard deviation of at most 0.009
        assert all(abs(count / len(drawn) - share) < 0.04 for count in values.values()), values


def visible(frame, background):
    """Pixels that are clearly not background."""
    return np.abs(frame.astype(int) - background).max(axis=-1) > 60


def centre(frame, background):
    rows, columns = np.nonzero(visible(frame, background))
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_event_shows_in_the_frames(shape, kind):
    scene = Scene(Thing(shape, "red", "medium", (1, 1)), (kind, "moves right"), None, background=230)
    if kind == "turns red":
        scene = Scene(Thing(shape, "blue", "medium", (1, 1)), (kind, "moves right"), None, background=230)
    elif kind == "moves right":
        scene = Scene(Thing(shape, "red", "medium", (0, 1)), (kind, "grows"), None, background=230)
    frames = render(scene).frames
    assert frames.shape == (2 * FPS, SIDE, SIDE, 3)
    first, middle, last = frames[0], frames[FPS // 4], frames[FPS]  # before, a quarter in, after the first event
    family = KINDS[kind]
    if family == "move":
        (x0, y0), (x1, y1) = centre(first, 230), centre(last, 230)
        expected = {"left": (-16, 0), "right": (16, 0), "up": (0, -16), "down": (0, 16)}[kind.split()[1]]
        assert (x1 - x0, y1 - y0) == pytest.approx(expected, abs=0.6)
    elif family == "size":
        ratio = visible(last, 230).sum() / visible(first, 230).sum()
        assert ratio > 1.5 if kind == "grows" else ratio < 0.6
    elif family == "colour":
        where = visible(last, 230)
        pixels = last[where].astype(int).mean(axis=0)
        hue = {"red": (215, 40, 40), "green": (40, 165, 60), "blue": (45, 80, 220), "yellow": (235, 200, 30)}
        assert min(hue, key=lambda name: np.abs(pixels - hue[name]).sum()) == kind.split()[1]
    elif kind == "hides":
        assert not visible(middle, 230).any() and visible(first, 230).any() and visible(last, 230).any()
    else:
        turned = np.abs(middle.astype(int) - first.astype(int)).max(axis=-1) > 60
        assert turned.sum() >= 8 and (first == last).all()


def test_captions_tell_every_event_in_order_with_two_connectives():
    for scene in scenes(50):
        told = read_events(caption(scene))
        assert tuple(event.kind for event in told) == scene.kinds
        assert {event.subject for event in told} == {scene.actor.shape}


def test_questions_are_answered_by_the_scene():
    rng = np.random.default_rng(1)
    for scene in scenes(200):
        source = describe(scene, rng)
        question = source.question
        assert 4 <= len(question.options) <= 5 and len(set(question.options)) == len(question.options)
        right = question.options["ABCDE".index(question.letter)]
        if "colour" in question.text:
            assert right == scene.actor.colour
        elif "right after" in question.text:
            before = question.text.removesuffix("?").split(" it ")[1]
            assert right == scene.kinds[scene.kinds.index(before) + 1]
        else:
            word = question.text.removesuffix("?").split()[-1]
            place = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}[word]
            assert right == scene.kinds[place]
