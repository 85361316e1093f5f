"""Forward and backward of one group: packed, the prompt once, against the peers' copy for every completion.

    python -m experiments.bench.learner [--backbone qwen3_vl] [--json FILE] [--plot FILE.png]

Three axes from one base point: the group, the completions and the video grow. Memory is the peak beyond the weights
(activations and gradients), its ratio packed / repeated: 0.5 is half. Both sides have the same weights, completions,
advantages and objective; the error is that of all gradients together, |packed - repeated| / |repeated|. "flops" is
repeated / packed of the products alone (matrices and attention, as torch counts them): where the speed-up is less, ours
has more around them, where it is more, less. It needs 16 GB, for qwen3_5 more than 22, for the peers' 32 completions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from experiments.bench.families import SMALL, TINY
from experiments.bench.harness import add_backbone, announcing, arguments, finish, medians, number, peak_extra_mb, show
from experiments.bench.shape import Sides, load_sides, random_group
from vidbridge.algo.objectives import grpo_loss
from vidbridge.algo.token_weights import LossNorm, token_weights
from vidbridge.policy.packing import loss_mask
from vidbridge.policy.plain import repeated_logprobs
from vidbridge.types import Group

AXES = {"group_size": (8, 4, 16, 32), "completion_tokens": (96, 32, 256), "video_tokens": (512, 128, 1568)}
QUICK_AXES = {"group_size": (8, 4, 32), "completion_tokens": (8, 4), "video_tokens": (32, 72)}  # base first


@dataclass(frozen=True)
class Learner:
    """Both ways to the gradients of one group's loss."""

    sides: Sides
    group: Group
    rows_at_once: int | None = None  # of the repeated side; None: all
    with_all_logits: bool = False  # time that side too

    def packed(self) -> list[torch.Tensor]:
        policy = self.sides.policy
        batch = policy.collate([self.group], *self._objective()).to(policy.module.device)
        logprobs, _ = policy.logprobs(batch)
        loss(logprobs, batch.advantages, batch.loss_mask, batch.token_weights).backward()
        return taken_gradients(policy.module)

    def repeated(self, every_position: bool = False) -> list[torch.Tensor]:
        policy, plain = self.sides.policy, self.sides.plain
        advantages, weights = (tensor.to(plain.device) for tensor in self._objective())
        for rows in torch.arange(len(advantages)).split(self.rows_at_once or len(advantages)):
            part = replace(self.group, completions=tuple(self.group.completions[row] for row in rows))
            logprobs = repeated_logprobs(
                plain,
                [part],
                temperature=policy.temperature,
                suppressed_ids=policy.suppressed_ids,
                every_position=every_position,
            )
            loss(logprobs, advantages[rows], loss_mask([part]).to(plain.device), weights[rows]).backward()
        return taken_gradients(plain)

    def all_logits(self) -> list[torch.Tensor]:
        """The repeated rows as the paper's trainer has them."""
        return self.repeated(every_position=True)

    @property
    def sides_timed(self) -> tuple[str, ...]:
        return ("packed", "repeated", "all_logits") if self.with_all_logits else ("packed", "repeated")

    @property
    def size(self) -> int:
        return len(self.group.completions)

    def single(self) -> Learner:
        """With the first completion alone: the others, as long as it is, cost the repeated side the same again."""
        return replace(self, group=replace(self.group, completions=self.group.completions[:1]))

    def _objective(self) -> tuple[torch.Tensor, torch.Tensor]:
        """advantages [G], token weights [G, T]."""
        mask = loss_mask([self.group])
        advantages = torch.randn(len(mask), generator=torch.Generator().manual_seed(0))
        return advantages, token_weights(mask, LossNorm.sequence, mask.shape[1])


def loss(
    logprobs: torch.Tensor,  # [N, T]
    advantages: torch.Tensor,  # [N]
    mask: torch.Tensor,  # [N, T] bool
    weights: torch.Tensor,  # [N, T]
) -> torch.Tensor:
    """On policy, without a reference."""
    return grpo_loss(
        logprobs,
        old_logprobs=None,
        ref_logprobs=None,
        advantages=advantages,
        loss_mask=mask,
        token_weights=weights,
        clip_low=0.2,
        clip_high=0.2,
        kl_beta=0.0,
    ).loss


# torch counts what its kernels for GPUs do; the one for CPUs is told as well. They are given shapes.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FLOPS = {
    _CPU_ATTENTION: lambda *shapes, **options: sdpa_flop_count(*shapes[:3]),
    _CPU_ATTENTION_BACKWARD: lambda *shapes, **options: sdpa_backward_flop_count(*shapes[:4]),
}


def gflop(function: Callable[[], Any]) -> float:
    """Of the products of matrices in a call, attention included (all of it, hidden or not), in 10**9."""
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        function()
    return counter.get_total_flops() / 1e9


def taken_gradients(module: nn.Module) -> list[torch.Tensor]:
    """One for each parameter; ``module`` is left without."""
    gradients = [weight.grad for weight in module.parameters()]
    module.zero_grad(set_to_none=True)
    return gradients


def relative_error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """|found - expected| / |expected| of all tensors together."""
    norms = [
        torch.stack([(one.float() - other.float()).norm(), other.float().norm()])
        for one, other in zip(found, expected, strict=True)
    ]
    difference, size = torch.stack(norms).norm(dim=0).tolist()
    return difference / size


def points(axes: dict[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """The base point, then every other value of each axis."""
    base = {axis: values[0] for axis, values in axes.items()}
    return [base] + [{**base, axis: value} for axis, values in axes.items() for value in values[1:]]


def measure(learners: dict[str, Learner], repeats: int) -> dict[str, dict[str, Any]]:
    """Everything about each named point but its sizes."""
    seconds = medians(
        {
            f"{side}, {name}": getattr(learner, side)
            for name, learner in learners.items()
            for side in learner.sides_timed
        },
        repeats,
    )
    rows = {}
    with announcing() as announce:
        for name, learner in learners.items():
            announce(f"memory, gradients and arithmetic: {name}")
            packed_mb, packed = peak_extra_mb(learner.packed)
            repeated_mb, repeated = peak_extra_mb(learner.repeated)
            packed_gflop, repeated_gflop = gflop(learner.packed), learner.size * gflop(learner.single().repeated)
            packed_s, repeated_s = seconds[f"packed, {name}"], seconds[f"repeated, {name}"]
            rows[name] = {
                "packed_s": packed_s,
                "repeated_s": repeated_s,
                "speedup": repeated_s / packed_s,
                "packed_gflop": packed_gflop,
                "repeated_gflop": repeated_gflop,
                "flop_ratio": repeated_gflop / packed_gflop,
                "packed_mb": packed_mb,
                "repeated_mb": repeated_mb,
                "memory_ratio": packed_mb / repeated_mb if packed_mb and repeated_mb else None,
                "grad_rel_err": relative_error(packed, repeated),
            }
            if learner.with_all_logits:
                all_logits_s = seconds[f"all_logits, {name}"]
                rows[name] |= {"all_logits_s": all_logits_s, "speedup_all_logits": all_logits_s / packed_s}
    return rows


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and memory against the group size; no display is needed."""
    base = rows[0]
    line = [row for row in rows if all(row[axis] == base[axis] for axis in AXES if axis != "group_size")]
    line.sort(key=lambda row: row["group_size"])
    sizes = [row["group_size"] for row in line]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = (("s", "forward and backward, s"), ("mb", "peak memory beyond the weights, MB"))
    for index, (unit, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 2, index, title=title, xlabel="completions of one prompt", xticks=sizes)
        for side in ("repeated", "packed"):
            axes.plot(sizes, [row[f"{side}_{unit}"] for row in line], label=side, marker="o", markersize=3)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{base['video_tokens']} video tokens, {base['completion_tokens']} a completion", fontsize="small")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("the learner: packed against repeated", repeats=3)
    add_backbone(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw cost against group size")
    parser.add_argument("--max-group", type=int, default=32, metavar="G", help="no larger groups: 16 saves half the GB")
    args = parser.parse_args(argv)
    sides = load_sides(TINY if args.quick else SMALL, args.backbone)
    sizes = {
        "{group_size} x {completion_tokens}, video {video_tokens}".format(**point): point
        for point in points(QUICK_AXES if args.quick else AXES)
        if point["group_size"] <= args.max_group
    }
    learners = {
        name: Learner(sides, random_group(sides.policy.processor, **point), with_all_logits=index == 0)
        for index, (name, point) in enumerate(sizes.items())
    }
    measured = measure(learners, args.repeats)
    rows = [{**point, **measured[name]} for name, point in sizes.items()]
    packed_s = {row["group_size"]: row["packed_s"] for row in reversed(rows)}  # of size 8 the base point, the first row
    growth = packed_s[32] / packed_s[8] if 32 in packed_s else None
    show(
        f"{args.backbone}: forward and backward of one group, packed / repeated; MB beyond the weights",
        ("G", "T", "video", "seconds", "speed-up", "flops", "all logits", "MB", "ratio", "error"),
        [
            (
                *(str(row[axis]) for axis in AXES),
                f"{row['packed_s']:.2f} / {row['repeated_s']:.2f}",
                number(row["speedup"], ".1f"),
                number(row["flop_ratio"], ".1f"),
                number(row.get("speedup_all_logits"), ".1f"),
                f"{number(row['packed_mb'], '.0f')} / {number(row['repeated_mb'], '.0f')}",
                number(row["memory_ratio"], ".2f"),
                number(row["grad_rel_err"], ".1e"),
            )
            for row in rows
        ],
        note=f"32 completions take the packed side {number(growth, '.2f')} times as long as 8",
    )
    if args.plot:
        draw(rows, args.plot)
    finish({"backbone": args.backbone, "rows": rows, "growth_8_to_32": growth}, args)


if __name__ == "__main__":
    main()
