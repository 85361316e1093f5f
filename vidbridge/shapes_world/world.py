"""The embedded world: one shape goes through three to five events, another may stand by. Exact ground truth.

A scene is drawn so that nothing but the pixels tells it: event kinds are a uniform draw without
repetition from the twelve, so each kind is equally likely at each turn, and the starting state is
uniform among those in which every event changes something (a shape that grows does not start big).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vidbridge.shapes_world.language import COLOURS, KINDS, LASTING, SHAPES, SIZES
from vidbridge.tasks.sources import Question, Source, TimedEvent
from vidbridge.types import Clip

FPS = 8
SIDE = 48  # pixels; a 3 x 3 grid of 16-pixel cells
EVENT_S = 1.0
_RGB = {"red": (215, 40, 40), "green": (40, 165, 60), "blue": (45, 80, 220), "yellow": (235, 200, 30)}
_RADIUS = {"small": 3.0, "medium": 5.0, "big": 8.0}  # pixels
_STEP = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
_ORDINALS = ("first", "second", "third", "fourth")  # and "last", whichever that is
_PLACES = (("left", "middle", "right"), ("top", "centre", "bottom"))  # columns, rows
_SAMPLES = 2  # supersampling a side, so that edges are smooth


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape at rest."""

    shape: str
    colour: str
    size: str
    cell: tuple[int, int]  # column, row; 0..2


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to know about one clip."""

    actor: Thing  # as it starts
    kinds: tuple[str, ...]  # what it does, one event a second
    bystander: Thing | None
    background: int  # grey level

    @property
    def duration_s(self) -> float:
        return len(self.kinds) * EVENT_S

    @property
    def shapes(self) -> frozenset[str]:
        return frozenset(thing.shape for thing in (self.actor, self.bystander) if thing)


def after(thing: Thing, kind: str) -> Thing | None:
    """The thing after an event, or None where the event would change nothing or leave the grid."""
    family = KINDS[kind]
    if family == "move":
        (column, row), (right, down) = thing.cell, _STEP[kind]
        cell = (column + right, row + down)
        return replace(thing, cell=cell) if 0 <= min(cell) and max(cell) <= 2 else None
    if family == "size":
        index = SIZES.index(thing.size) + (1 if kind == "grows" else -1)
        return replace(thing, size=SIZES[index]) if 0 <= index < len(SIZES) else None
    if family == "colour":
        colour = kind.split()[1]
        return replace(thing, colour=colour) if colour != thing.colour else None
    return thing


def states(actor: Thing, kinds: tuple[str, ...]) -> list[Thing] | None:
    """The actor before the first event and after each one; None when an event is impossible."""
    things = [actor]
    for kind in kinds:
        thing = after(things[-1], kind)
        if thing is None:
            return None
        things.append(thing)
    return things


def draw_scene(rng: np.random.Generator, num_events: int, shapes: tuple[str, ...] = SHAPES) -> Scene:
    """A random scene of ``num_events`` events whose shapes are among ``shapes``."""
    kinds = tuple(str(kind) for kind in rng.permutation(list(KINDS))[:num_events])
    while True:  # a possible start always exists, because no kind occurs twice
        actor = Thing(str(rng.choice(shapes)), str(rng.choice(COLOURS)), str(rng.choice(SIZES)), _cell(rng))
        things = states(actor, kinds)
        if things is not None:
            break
    bystander = None
    others = [shape for shape in shapes if shape != actor.shape]
    if others and rng.random() < 0.3:
        visited = {thing.cell for thing in things}
        free = [(column, row) for column in range(3) for row in range(3) if (column, row) not in visited]
        bystander = Thing(str(rng.choice(others)), str(rng.choice(COLOURS)), "small", free[rng.integers(len(free))])
    return Scene(actor, kinds, bystander, background=int(rng.integers(215, 250)))


def _cell(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(3)), int(rng.integers(3))


def render(scene: Scene) -> Clip:
    """Frames [T, 48, 48, 3] at 8 fps."""
    things = states(scene.actor, scene.kinds)
    assert things is not None, scene
    times_s = np.arange(round(scene.duration_s * FPS)) / FPS
    frames = np.empty((len(times_s), SIDE, SIDE, 3), np.float32)
    still = np.full((SIDE, SIDE, 3), scene.background, np.float32)
    if scene.bystander is not None:
        thing = scene.bystander
        _paint(still, thing.shape, _RGB[thing.colour], _RADIUS[thing.size], _centre(thing), 0.0)
    for frame, time_s in zip(frames, times_s):
        index = int(time_s / EVENT_S)
        progress = time_s / EVENT_S - index
        eased = _ease(progress)
        before, then, kind = things[index], things[index + 1], scene.kinds[index]
        # slower at both ends: after a quarter of the time not a quarter turn, which a square would not show
        angle = 2 * np.pi * progress * progress * (3 - 2 * progress) if kind == "spins" else 0.0
        frame[:] = still
        if kind == "hides" and 0.15 < progress < 0.85:
            continue
        radius = (1 - eased) * _RADIUS[before.size] + eased * _RADIUS[then.size]
        colour = (1 - eased) * np.array(_RGB[before.colour]) + eased * np.array(_RGB[then.colour])
        centre = (1 - eased) * _centre(before) + eased * _centre(then)
        _paint(frame, scene.actor.shape, colour, radius, centre, angle)
    return Clip(frames=np.round(frames).astype(np.uint8), times_s=times_s)


def _ease(progress: float) -> float:
    """Changes happen in the middle of an event, with rest before and after: a frame either side shows both states."""
    hurried = min(max((progress - 0.2) / 0.6, 0.0), 1.0)
    return hurried * hurried * (3 - 2 * hurried)


def _centre(thing: Thing) -> np.ndarray:
    return (np.array(thing.cell) + 0.5) * (SIDE / 3)


def _paint(frame: np.ndarray, shape: str, colour: object, radius: float, centre: np.ndarray, angle: float) -> None:
    """Draw a filled, rotated shape into ``frame`` in place."""
    reach = int(np.ceil(radius * 1.5)) + 1
    left, top = np.maximum(np.floor(centre).astype(int) - reach, 0)
    right, bottom = np.minimum(np.floor(centre).astype(int) + reach + 1, SIDE)
    across = (np.arange(left * _SAMPLES, right * _SAMPLES) + 0.5) / _SAMPLES - centre[0]
    down = (np.arange(top * _SAMPLES, bottom * _SAMPLES) + 0.5) / _SAMPLES - centre[1]
    x = (np.cos(angle) * across[None, :] + np.sin(angle) * down[:, None]) / radius
    y = (-np.sin(angle) * across[None, :] + np.cos(angle) * down[:, None]) / radius
    inside = _INSIDE[shape](x, y)
    cover = inside.reshape(bottom - top, _SAMPLES, right - left, _SAMPLES).mean((1, 3))[..., None]
    patch = frame[top:bottom, left:right]
    patch[:] = (1 - cover) * patch + cover * np.asarray(colour)


# each in units of the radius, y down
_INSIDE = {
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    "triangle": lambda x, y: (y < 0.8) & (y > 2 * abs(x) - 1.1),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.33) & (np.maximum(abs(x), abs(y)) < 1),
    "pie": lambda x, y: (x * x + y * y < 1) & ~((x > 0) & (abs(y) < x)),
}


def describe(scene: Scene, rng: np.random.Generator) -> Source:
    """Return what there is to say about the clip of a scene, with one question drawn for it."""
    things = states(scene.actor, scene.kinds)
    assert things is not None, scene
    events = tuple(
        TimedEvent(
            start_s=index * EVENT_S,
            end_s=(index + 1) * EVENT_S,
            text=f"the {scene.actor.shape} {kind}",
            noted=f"{_ordinal(scene, index)} {kind}",
            inferable=KINDS[kind] in LASTING,
            before=_look(things[index]),
            after=_look(things[index + 1]),
        )
        for index, kind in enumerate(scene.kinds)
    )
    return Source(
        duration_s=scene.duration_s,
        subject=_look(scene.actor),
        events=events,
        caption=caption(scene),
        question=_question(scene, rng),
    )


def _ordinal(scene: Scene, index: int) -> str:
    return "last" if index == len(scene.kinds) - 1 else _ORDINALS[index]


def _look(thing: Thing) -> str:
    column, row = thing.cell
    return f"{thing.size} {thing.colour} {thing.shape}, {_PLACES[0][column]} {_PLACES[1][row]}"


def caption(scene: Scene) -> str:
    """One sentence with every event in order."""
    joints = ["First the " + scene.actor.shape, "then it", "next it", "then it", "next it"][: len(scene.kinds)]
    joints[-1] = "finally it"
    return ", ".join(f"{joint} {kind}" for joint, kind in zip(joints, scene.kinds)) + "."


def _question(scene: Scene, rng: np.random.Generator) -> Question:
    """Return what happened at a turn, what followed an event, or the first colour."""
    subject = f"the {scene.actor.shape}"
    form = rng.integers(5)
    if form == 4:
        return Question(
            text=f"What colour is {subject} at the start?",
            answer=scene.actor.colour,
            found=f"So {scene.actor.colour}",
            options=_options(scene.actor.colour, COLOURS, len(COLOURS), rng),
        )
    index = int(rng.integers(1 if form == 3 else 0, len(scene.kinds)))
    answer, ordinal = scene.kinds[index], _ordinal(scene, index)
    if form == 3:
        before = scene.kinds[index - 1]
        text, found = f"What does {subject} do right after it {before}?", f"So {before}, {ordinal} {answer}"
        candidates = [kind for kind in KINDS if kind != before]
    else:
        text, found = f"What does {subject} do {ordinal}?", f"So {ordinal} {answer}"
        candidates = list(KINDS)
    return Question(
        text=text,
        answer=f"{subject} {answer}",
        found=found,
        options=_options(answer, tuple(candidates), int(rng.integers(4, 6)), rng),
    )


def _options(answer: str, candidates: tuple[str, ...], number: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The right option at a uniform index among others drawn uniformly, so that the text alone tells nothing."""
    others = rng.permutation([candidate for candidate in candidates if candidate != answer])[: number - 1]
    options = [str(other) for other in others]
    options.insert(int(rng.integers(number)), answer)
    return tuple(options)
