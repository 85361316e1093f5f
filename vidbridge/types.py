"""Every value that travels through a step, in travel order.

    Sample -> Prompt -> EncodedPrompt -> Group (of Completions, then RewardBreakdowns) -> Batch

All are frozen: a stage never edits what it was given, it returns something new.
Letters in shapes: P prompts, G siblings (completions of one prompt), N = P*G rows,
T completion tokens (padded), L prompt tokens (padded), S tokens of a packed row, V videos and images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Sequence

import numpy as np

if TYPE_CHECKING:  # annotations alone: the processes that read videos start without it
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRef:
    """A video file, and the part of it that counts.

    >>> VideoRef(path="clips/a.mp4", start_s=2.0, end_s=None).start_s
    2.0
    """

    path: str
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the file

    @property
    def sources(self) -> tuple[VideoRef, ...]:
        """Return itself: all that there is to read."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image file: ``ImageRef(path="charts/a.png")``."""

    path: str

    @property
    def sources(self) -> tuple[ImageRef, ...]:
        """Return itself: all that there is to read."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one source of a montage, in seconds from where that source starts."""

    source: int  # index
    start_s: float
    end_s: float
    speed: float = 1.0  # 0.5 is slow motion: a second of the source takes two to play

    @property
    def length_s(self) -> float:
        """Return how long it plays."""
        return (self.end_s - self.start_s) / self.speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A change of the frames in an interval of played time, by a function of vidbridge/media/effects.py.

    ``Effect(name="dark", start_s=12.5, end_s=18.0)``; ``Effect(name="my_effects.blur", params={"radius": 3})``.
    """

    name: str  # of the function; a dotted one is found outside of the package
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the clip
    params: Mapping[str, Any] = field(default_factory=dict)  # its keyword arguments, of types that JSON has


@dataclass(frozen=True, slots=True, kw_only=True)
class Montage:
    """Segments of videos shown one after another as one video, then changed by effects in their order.

    It is made while it is read: there is no new file. vidbridge/media/montage.py says what plays when. MixVidQA has
    segments of two sources in turn; DarkEventInfer one source and ``effects=(Effect(name="dark", ..),)``.
    """

    sources: tuple[VideoRef, ...]
    segments: tuple[Segment, ...] = ()  # none: the first source as it is
    effects: tuple[Effect, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a montage needs a source")
        for segment in self.segments:
            if segment.source not in range(len(self.sources)):
                raise ValueError(f"{segment}: source must be an index of the {len(self.sources)} sources")
            if not (0 <= segment.start_s < segment.end_s and 0 < segment.speed < math.inf):
                raise ValueError(f"{segment}: 0 <= start_s < end_s and a positive speed are needed")

    @property
    def path(self) -> str:
        """Return the path of what is shown first, by which it goes in tables and messages."""
        return self.sources[self.segments[0].source if self.segments else 0].path


Visual = VideoRef | Montage | ImageRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Decoded frames with their presentation times, or an image, which is one frame without a time.

    Eight frames of a 48 x 48 video, two a second:
    ``frames.shape == (8, 48, 48, 3)``, ``times_s == [0.25, 0.75, ..]``.
    """

    frames: np.ndarray  # [T, H, W, 3] uint8, RGB, upright
    times_s: np.ndarray  # [T] float64, seconds from the start of the clip; [0] of an image, where it means nothing
    is_image: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of one task, before any pixel is read.

    ``Sample(uid="qa/train/17", task="qa", question="What does the square do first?",
    answer="B", options=("grows", "moves left", ..), videos=(VideoRef(..),))``
    """

    uid: str
    task: str
    question: str
    answer: str  # the reference: an option letter, a sentence, or a caption
    videos: tuple[VideoRef | Montage, ...]
    images: tuple[ImageRef, ...] = ()  # shown before the videos
    options: tuple[str, ...] = ()  # QA only, without their letters
    meta: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0  # which row of its task; past the last they come round again

    @property
    def shown(self) -> tuple[Visual, ...]:
        """Return all that the model is shown, in its order: the clips of the prompt."""
        return (*self.images, *self.videos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The prompt that the model is shown: chat messages with one entry for each clip, "video" or "image".

    ``messages == ({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": ".."}]},)``
    """

    messages: tuple[Mapping[str, Any], ...]
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt as tensors, made once and used by rollout and learner alike.

    A 5 s clip at 2 fps and 48 x 48 pixels, patch 8, merge 2, temporal patch 2:
    ``grid_thw == [[5, 6, 6]]``, ``pixel_values.shape == (180, 384)``, 45 video tokens.
    """

    input_ids: torch.Tensor  # [L] int64, placeholders of videos and images expanded
    position_ids: torch.Tensor  # [3, L] int64: temporal, height, width (mRoPE)
    rope_delta: int  # position of the first completion token = L + rope_delta
    pixel_values: torch.Tensor  # [patches, channels * temporal_patch * patch * patch] float32
    grid_thw: torch.Tensor  # [V, 3] int64, of each clip: in patches, in time (1 of an image), height and width
    uid: str = ""  # of its sample, for errors


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. ValueError for a number out of its range."""

    max_completion_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0  # the fewest tokens that together reach this probability may be drawn
    min_p: float = 0.0  # tokens at least this fraction as likely as the likeliest may be drawn
    stop: tuple[str, ...] = ()  # strings that end a completion, besides EOS
    greedy: bool = False  # the likeliest token at every step; the temperature is that of the log-probabilities

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.max_completion_tokens < 1:
            raise ValueError(f"max_completion_tokens must be positive, got {self.max_completion_tokens}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1), got {self.min_p}")
        if not all(self.stop):
            raise ValueError("stop must not hold an empty string: every completion would end at once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer. ``token_ids`` ends with EOS when ``finished``, unless a stop string ended it."""

    text: str  # decoded, without EOS and padding
    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...] | None = None  # one for each token id
    finished: bool = True  # False: cut at max_completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBreakdown:
    """Why a completion earned what it did.

    ``RewardBreakdown(total=1.4, terms={"event_recall": 1.0, "event_precision": 0.8}, gates={"format": 1.0})``
    with weights 1 and 0.5. ``terms`` are before weighting and gating. What no judge could score is nan.
    """

    total: float
    terms: Mapping[str, float]
    gates: Mapping[str, float]

    @property
    def scored(self) -> bool:
        return not math.isnan(self.total)

    @classmethod
    def unscored(cls) -> RewardBreakdown:
        """Return what a completion has that nothing could score."""
        return cls(total=math.nan, terms={}, gates={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt and its G sibling completions; rewards are added by scoring.

    A completion that could not be scored has a total of nan: it is masked, never dropped.
    """

    sample: Sample
    prompt: Prompt
    encoded: EncodedPrompt
    completions: tuple[Completion, ...]
    rewards: tuple[RewardBreakdown, ...] = ()  # one for each completion; before scoring none

    @property
    def scored(self) -> tuple[bool, ...]:
        """Return whether each completion counts; before scoring all do."""
        return tuple(reward.scored for reward in self.rewards) or (True,) * len(self.completions)

    @property
    def is_scored(self) -> bool:
        """Return whether any completion counts."""
        return any(self.scored)

    def light(self) -> Group:
        """Return the group without frames and tensors: what the other ranks are told about it."""
        import torch

        no = torch.empty(0, dtype=torch.long)
        encoded = EncodedPrompt(input_ids=no, position_ids=no, rope_delta=0, pixel_values=no, grid_thw=no)
        return replace(self, prompt=replace(self.prompt, clips=()), encoded=encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch for the learner: whole groups packed into one row of S tokens, every prompt once.

    Two groups of 8 with prompts of 100 tokens and completions of 21: ``input_ids.shape == (520,)`` (the last token of
    a completion predicts nothing), ``completion_ids.shape == (16, 21)``.
    """

    input_ids: torch.Tensor  # [S] int64: p1 c11 .. c1G p2 c21 ..
    position_ids: torch.Tensor  # [3, S] int64; every completion starts where its prompt ends
    group_ids: torch.Tensor  # [S] int64, from 0
    sibling_ids: torch.Tensor  # [S] int64: 0 in a prompt, 1..G in its completions
    pixel_values: torch.Tensor  # [patches, D] float32, all prompts' clips in order
    grid_thw: torch.Tensor  # [V, 3] int64
    completion_ids: torch.Tensor  # [N, T] int64, right-padded
    predictors: torch.Tensor  # [N, T] int64, index in the packed row whose output predicts this completion token
    sampled_mask: torch.Tensor  # [N, T] bool, False on padding
    loss_mask: torch.Tensor  # [N, T] bool, the same without completions that do not count (Group.scored)
    advantages: torch.Tensor  # [N] float32
    token_weights: torch.Tensor  # [N, T] float32, the loss is the sum of weight * token loss
    sampler_logprobs: torch.Tensor | None = None  # [N, T] as the rollout reported them, 0 on padding
    old_logprobs: torch.Tensor | None = None  # [N, T] or None: on-policy, ratio 1
    ref_logprobs: torch.Tensor | None = None  # [N, T] or None: kl_beta 0
    router_weight: float = 0.0  # of the routers' balance loss in this part of an update

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on ``device``; itself if it is there already."""
        found: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        there = {name: value.to(device) for name, value in found.items() if hasattr(value, "to")}
        return replace(self, **there)


class Outputs(NamedTuple):
    """What the policy says about the completions of a Batch."""

    logprobs: torch.Tensor  # [N, T], carries the gradient; 0 on padding
    entropies: torch.Tensor  # [N, T], without gradient; 0 on padding
    router_loss: torch.Tensor  # scalar to add to the loss: the balance loss times router_weight; 0 without a router
    expert_load: torch.Tensor  # scalar, tokens of the busiest expert in units of the mean; 0 without a router


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The scalar to differentiate and what to log about it."""

    loss: torch.Tensor  # scalar
    metrics: Mapping[str, float]  # policy/clip_low_frac, policy/clip_high_frac, policy/kl, ..


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The metrics and groups of one training step, for logging."""

    metrics: Mapping[str, float]
    groups: tuple[Group, ...] = ()
    advantages: Sequence[Sequence[float]] = ()  # of the groups' completions, where there was something to learn from
