"""How many bytes a step holds, by arithmetic on the layers of the real model: before any weight is loaded.

A step has moments at which memory is highest: prompts are read, completions decoded, the loss is differentiated, the
weights are changed. For each, what is held is listed by what it is for. What a layer saves for the backward pass is
counted (saved.py), our attention's part of it is arithmetic; tests/memory_plan/test_memory.py counts both in a real
forward pass. Left out: what an allocator wastes, libraries and the interpreter, and all that does not grow with the
model or the prompts. What DeepSpeed holds is read from its code, not measured.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Mapping

from vidbridge.algo.logprobs import _CHUNK_VALUES
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.memory_plan.saved import NUMBER, LayerKind
from vidbridge.policy.packing import fill_rows
from vidbridge.rollout.base import EngineMemory
from vidbridge.rollout.kv_cache import FIRST_COLUMNS
from vidbridge.rollout.shared_prefix import _WORTH_LEAVING

FLOAT = 4  # bytes of a number in 32 bits
# DeepSpeed, in numbers: weights gathered at a time under ZeRO-3, weights updated at a time (its defaults), gradients
# sent at a time (our setting)
MAX_LIVE, SUB_GROUP, BUCKET = 1_000_000_000, 1_000_000_000, 50_000_000

Bytes = Mapping[str, float]  # by what they are for


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How DeepSpeed divides what is held among the ranks; stage 0 divides nothing."""

    stage: int = 0  # of ZeRO: 2 divides optimizer and gradients, 3 the weights too
    ranks: int = 1
    offload: bool = False  # what is divided lies in the memory of the CPU

    def share(self, whole: float, *, from_stage: int = 2) -> float:
        """Return what one rank holds of it."""
        return whole / self.ranks if self.stage >= from_stage else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Prompts of one size with their completions: side by side in a packed row, or sampled together."""

    number: int
    siblings: int
    prompt_tokens: int
    completion_tokens: int
    patches: int  # of the videos of one prompt

    def in_one_row(self, max_packed_tokens: int) -> Groups:
        """Return as many of them as fit into the learner's budget, and at least one."""
        return replace(self, number=len(fill_rows([self.tokens // self.number] * self.number, max_packed_tokens)[0]))

    @property
    def tokens(self) -> int:
        """Return the tokens of a packed row, in which the last token of a completion is not."""
        return self.number * (self.prompt_tokens + self.siblings * (self.completion_tokens - 1))

    @property
    def rows(self) -> int:
        return self.number * self.siblings


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The memory held at one time, by what it is for."""

    stage: str
    device: Bytes  # of a GPU; without one, all that is held
    host: Bytes  # in the memory of the CPU beside a GPU

    @property
    def total(self) -> float:
        return sum(self.device.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Bytes on the device: ``held`` from earlier rows, and beside them what the backward pass makes anew."""

    held: float
    first: float  # when it reaches the last layer
    last: float  # when it reaches the vision tower
    gathering: float  # when they are added to those that are held


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one rank by stage. ``host`` is what prompts and videos take in the memory of the CPU."""

    model: ModelSize
    sharding: Sharding
    on_gpu: bool
    has_reference: bool = False  # a KL term compares with the model as it was
    engine: EngineMemory | None = None  # of a rollout with weights of its own; None: it samples from ours

    def loading(self) -> Moment:
        """Before weights are divided: every rank has read all of them into the memory of the CPU."""
        whole = {"whole weights": self.model.itemsize * self.model.weights}
        return Moment(stage="loading", device={} if self.on_gpu else whole, host=whole if self.on_gpu else {})

    def sampling(self, stage: str, groups: Groups, *, host: float) -> Moment:
        """Reading the prompts of ``groups``, or decoding their last tokens: whichever takes more."""
        b, text = self.model.itemsize, self.model.config.text_config
        if self.engine is not None:
            # the weights are handed over one at a time: the largest is gathered, and copied for the engine
            copies = 1 + (self.sharding.stage == 3)
            handed_over = {"gathered weights": copies * b * self.model.in_vocabulary}
            return self._moment(stage, handed_over, host, samples=True)
        tokens, patches = groups.number * groups.prompt_tokens, groups.number * groups.patches
        of_a_token = 2 * b * self.model.attending * self.model.key_width  # key and value
        # where a layer is widest: residual, its input, and three tensors of the MLP, or what a recurrence makes
        chunks = groups.number * _chunks(groups.prompt_tokens)
        recurring = max(kind.chunk * chunks for kind in self.model.text_layers)
        reading = max(b * tokens * 3 * (text.hidden_size + self.model.mlp_width), recurring)
        states = groups.rows * self.model.state
        seeing = patches * self._vision_forward() + b * tokens * text.hidden_size
        pixels = patches * (FLOAT * self.model.patch_numbers + self._cast_patch)
        # rows that have ended leave by a copy of those that stay, made before the old ones go
        grid = (1 + _WORTH_LEAVING) * of_a_token * groups.rows * _capacity(groups.completion_tokens - 1)
        # logits, log-probabilities, and two tensors in 64 bits to draw from
        drawing = groups.rows * text.vocab_size * (b + FLOAT + 2 * 8)
        seen = groups.prompt_tokens + groups.completion_tokens
        scores = 3 * FLOAT * groups.rows * text.num_attention_heads * seen
        moments = (
            {"reading": pixels + seeing},
            {"reading": pixels + reading, "KV cache": of_a_token * tokens, "states": states},
            {
                "drawing": max(drawing, scores),
                "KV cache": of_a_token * tokens + grid,
                "states": (1 + _WORTH_LEAVING) * states,
            },
        )
        return max((self._moment(stage, device, host) for device in moments), key=lambda moment: moment.total)

    def learning(self, row: Groups, *, all_patches: int, host: float) -> Moment:
        """Forward and backward of one packed row, not the first; the patches of all rows stay on the device."""
        model, b = self.model, self.model.itemsize
        vocab_size = model.config.text_config.vocab_size
        chunk = vocab_size * min(row.rows * row.completion_tokens, max(1, _CHUNK_VALUES // vocab_size))
        of_projection = model.in_vocabulary * (FLOAT + b) if model.trains_vocabulary else 0  # the sum, and a chunk's
        text, vision = self._saved_text(row), self._saved_vision(row)
        gradients = self._gradients()
        # in the order of a step: any may be the largest; the backward pass ends with the vision tower
        moments: tuple[Bytes, ...] = (
            {"activations": text + vision, "logits": 3 * FLOAT * chunk},
            {"activations": text + vision, "logits": (FLOAT + b % FLOAT) * chunk + of_projection},
            {"activations": text + vision + self._text_work(row), "gradients": gradients.first},
            {"activations": vision + self._vision_work(row), "gradients": gradients.last},
            {"gradients": gradients.gathering},
        )
        largest = max(moments, key=lambda moment: sum(moment.values()))
        worst = dict(largest)
        worst["gradients"] = worst.get("gradients", 0.0) + gradients.held
        gathered = b * min(MAX_LIVE, model.weights) if self.sharding.stage == 3 else 0.0
        patches = FLOAT * all_patches * model.patch_numbers
        return self._moment("learner", {**worst, "gathered weights": gathered, "patches": patches}, host)

    def updating(self, *, host: float) -> Moment:
        """The optimizer at work: DeepSpeed joins the gradients of the weights that it updates at a time."""
        sharding = self.sharding
        joined = min(sharding.share(self.model.trained), SUB_GROUP) if sharding.stage and not sharding.offload else 0
        return self._moment("update", {"gradients": self._gradients().held + FLOAT * joined}, host)

    def _moment(self, stage: str, device: Bytes, host: float, *, samples: bool = False) -> Moment:
        """Return a moment with what is held all the time added, and a rollout engine that sleeps unless it samples."""
        model, sharding, b = self.model, self.sharding, self.model.itemsize
        has_masters = b < FLOAT or sharding.stage == 2 or sharding.offload
        kept = {
            "weights": sharding.share(b * model.weights, from_stage=3),
            "optimizer": sharding.share((2 + has_masters) * FLOAT * model.trained),  # two moments, and the masters
        }
        # under ZeRO-3 what needs all of the weights: our own rollout, and the reference of adapters, which is the model
        replica = self.engine is None or (self.has_reference and model.has_adapters)
        copies = {
            "reference": b * model.weights if self.has_reference and not model.has_adapters else 0.0,
            "replica": b * model.weights if sharding.stage == 3 and replica else 0.0,
        }
        on_host = {"videos": host}
        if self.engine is not None and (samples or not self.engine.sleeps):
            copies["rollout engine"] = self.engine.weights + self.engine.cache
        elif self.engine is not None:
            on_host["rollout engine"] = self.engine.weights
        if sharding.offload:
            on_host |= {**kept, "gradients": sharding.share(2 * FLOAT * model.trained)}  # and joined ones
            kept = {}
        on_device = {**kept, **copies, **device}
        if self.on_gpu:
            return Moment(stage=stage, device=on_device, host=on_host)
        return Moment(stage=stage, device=Counter(on_device) + Counter(on_host), host={})

    def _gradients(self) -> Gradients:
        model, b = self.model, self.model.itemsize
        embedding = model.in_vocabulary * model.trains_vocabulary  # the largest of all
        if self.sharding.stage:
            held = 0.0 if self.sharding.offload else self.sharding.share(FLOAT * model.trained)
            sent = FLOAT * max(embedding, min(BUCKET, model.trained)) + b * embedding
            return Gradients(held=held, first=sent, last=sent, gathering=sent)
        held = FLOAT * model.trained
        if b < FLOAT:  # gathered in 32 bits after the backward pass, weight by weight
            fresh = b * model.trained
            return Gradients(held=held, first=b * embedding, last=fresh, gathering=fresh + 2 * FLOAT * embedding)
        # added in place; a tied embedding's two gradients meet first
        first = b * embedding * model.config.tie_word_embeddings
        return Gradients(held=held, first=first, last=first + b * embedding, gathering=first + b * embedding)

    def _saved_text(self, row: Groups) -> float:
        """Return the bytes that all layers and what follows them keep for the backward pass."""
        b, text = self.model.itemsize, self.model.config.text_config
        if self.model.checkpointing:
            layers = text.num_hidden_layers * b * row.tokens * text.hidden_size
        else:
            layers = sum(kind.number * self._text_layer(kind, row) for kind in self.model.text_layers)
        last_norm = row.tokens * (FLOAT + b * self._trains_norms) * text.hidden_size
        predicting = b * row.rows * row.completion_tokens * text.hidden_size
        return layers + last_norm + predicting

    def _text_layer(self, kind: LayerKind, row: Groups) -> float:
        saved = row.tokens * kind.saved
        if kind.chunk:  # attention.Packed: prompts and completions are sequences of their own
            chunks = row.number * _chunks(row.prompt_tokens) + row.rows * _chunks(row.completion_tokens - 1)
            return saved + kind.chunk * chunks
        if self.on_gpu:
            return saved
        # attention.PackedSdpa: queries again, and keys and values with those of the prompt before them
        tokens = row.completion_tokens - 1
        again = tokens * self.model.query_width + 2 * self.model.key_width * (row.prompt_tokens + tokens)
        return saved + self.model.itemsize * row.rows * again

    def _text_work(self, row: Groups) -> float:
        """Return the bytes while a layer is differentiated: gradients in its MLP, what checkpointing computes again."""
        text = self.model.config.text_config
        layers = (self._text_layer(kind, row) for kind in self.model.text_layers)
        again = max(layers) if self.model.checkpointing else 0.0
        return again + self.model.itemsize * row.tokens * (2 * text.hidden_size + 3 * self.model.mlp_width)

    def _saved_vision(self, row: Groups) -> float:
        """Return the bytes that all blocks and the merger keep; 0 where the tower is frozen."""
        if not self.model.trains_vision:
            return 0.0
        b, vision = self.model.itemsize, self.model.config.vision_config
        block = b * vision.hidden_size if self.model.checkpointing else self.model.saved_vision
        merger = self._norm(vision.hidden_size) + 2 * b * vision.hidden_size
        patch = 0.0 if self.model.has_adapters else self._cast_patch  # for the gradient of their embedding
        return row.number * row.patches * (vision.depth * block + merger + patch)

    def _vision_work(self, row: Groups) -> float:
        if not self.model.trains_vision:
            return 0.0
        vision = self.model.config.vision_config
        again = self.model.saved_vision if self.model.checkpointing else 0.0
        gradients = self.model.itemsize * (2 * vision.hidden_size + 3 * vision.intermediate_size)
        return row.number * row.patches * (again + gradients)

    def _vision_forward(self) -> float:
        """Return the bytes of a patch in a block that saves nothing: attention with copies by window, or the MLP."""
        b, vision = self.model.itemsize, self.model.config.vision_config
        return b * max(12 * vision.hidden_size, 2 * vision.hidden_size + 3 * vision.intermediate_size)

    def _norm(self, width: int) -> float:
        """Saved by a norm for one token: its input in 32 bits, what it makes of it, and that times the scale."""
        return (FLOAT + (1 + self._trains_norms) * self.model.itemsize) * width

    @property
    def _trains_norms(self) -> bool:
        """Whether scales are trained, for which a norm keeps what it makes of its input."""
        return not self.model.has_adapters

    @property
    def _cast_patch(self) -> float:
        """A patch comes in 32 bits and is turned into the model's."""
        b = self.model.itemsize
        return b * self.model.patch_numbers if b < FLOAT else 0.0


def _chunks(tokens: int) -> int:
    """Return in how many chunks a recurrent layer computes a sequence.

    >>> [_chunks(tokens) for tokens in (0, 1, 64, 65)]
    [0, 1, 1, 2]
    """
    return math.ceil(tokens / NUMBER)


def _capacity(tokens: int) -> int:
    """Columns of a cache that holds ``tokens`` of each completion: room is doubled when it is full.

    >>> [_capacity(tokens) for tokens in (1, 64, 65, 2048)]
    [64, 64, 128, 2048]
    """
    capacity = FIRST_COLUMNS
    while capacity < tokens:
        capacity *= 2
    return capacity
