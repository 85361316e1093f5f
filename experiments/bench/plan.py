"""The memory that plan=true predicts against the peaks of real steps, each in a process of its own.

    python -m experiments.bench.plan [--json FILE]

A random model takes one GRPO step. The peaks of its rollout and of its learner, beyond what the process held before
there was a model, are compared with vidbridge/memory_plan/memory.py: in all, and beyond the weights and the
optimizer, which are there all the time. On the CPU resident pages are counted, twice: with every tensor on pages of
its own, which is what the arithmetic is about, and with glibc left to itself, which keeps freed memory and so takes
more. Where there is a CUDA device, the same steps in bfloat16 on it follow, counted by torch's allocator. Errors:
predicted / measured - 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Callable, Sequence, TypeVar

import torch

from experiments.bench.families import MEDIUM, TINY, Shape
from experiments.bench.harness import CONSOLE, announcing, arguments, finish, held_mb, number, peak_extra_mb, show
from experiments.bench.shape import load_policy, never_end
from experiments.bench.step import Sizes, grpo_step
from vidbridge.config.choices import Dtype
from vidbridge.config.schema import ModelConfig
from vidbridge.memory_plan.memory import Groups, Memory, Moment, Sharding
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.policy.policy import Policy
from vidbridge.rollout.sampling import StopStrings
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.step import GrpoStep

T = TypeVar("T")
KEPT = ("weights", "optimizer", "videos")  # there before a stage begins


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs between two measurements."""

    group_size: int = 8
    max_packed_tokens: int = 1024
    gradient_checkpointing: bool = False
    completion_tokens: int = 64
    video_tokens: int = 128
    num_prompts: int = 4
    frozen: tuple[str, ...] = ()
    device: str = "cpu"
    quick: bool = False

    @property
    def shape(self) -> Shape:
        return TINY if self.quick else MEDIUM

    @property
    def dtype(self) -> str:
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            num_prompts=self.num_prompts,
            group_size=self.group_size,
            completion_tokens=self.completion_tokens,
            video_tokens=self.video_tokens,
        )


SETTINGS = (
    Setting(),
    Setting(group_size=16, video_tokens=512),
    Setting(max_packed_tokens=2048),
    Setting(max_packed_tokens=2048, gradient_checkpointing=True),
)
PAGES_OF_THEIR_OWN = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which glibc asks for pages, and gives them back


class EndingEarly(SharedPrefixRollout):
    """A quarter of the completions end just before the limit: then the cache is largest, and copied without them."""

    def __init__(self, policy: Policy, completion_tokens: int) -> None:
        super().__init__(policy)
        self.completion_tokens = completion_tokens

    def _ends(
        self, token_ids: torch.Tensor, rows: torch.Tensor, column: int, stop: StopStrings | None
    ) -> torch.Tensor:
        return (rows % 4 == 0) & (column == self.completion_tokens - 3)


def measure(setting: Setting) -> dict[str, dict[str, float | None]]:
    """MB by stage, in a process that has done nothing yet: predicted and measured, in all and beyond what is kept."""
    device = torch.device(setting.device)
    prepared(replace(setting, quick=True, num_prompts=2))(0)  # what libraries set up on first use is not the model's
    before = held_mb(device)
    step = prepared(setting)
    step.policy.update()  # on no gradient: the optimizer makes its tensors
    prompts = step.sampler.prompts(0)
    step.sampler.prompts = lambda number: prompts  # type: ignore[assignment]
    moments = predictions(setting, step)
    found: dict[str, dict[str, float | None]] = {}

    def measured(stage: str, function: Callable[..., T]) -> Callable[..., T]:
        def run(*args: Any, **options: Any) -> T:
            kept = held_mb(device) - before
            extra, result = peak_extra_mb(lambda: function(*args, **options), device)
            parts = moments[stage].device.items()
            found[stage] = {
                "predicted": moments[stage].total / 1e6,
                "measured": None if extra is None else kept + extra,
                "predicted_beyond": sum(value for part, value in parts if part not in KEPT) / 1e6,
                "measured_beyond": extra,
            }
            return result

        return run

    step.sampler.rollout.generate = measured("rollout", step.sampler.rollout.generate)  # type: ignore[method-assign]
    step._learn = measured("learner", step._learn)  # type: ignore[method-assign]
    step(0)
    return found


def prepared(setting: Setting) -> GrpoStep:
    """A step on a new model."""
    policy = load_policy(
        setting.shape,
        max_packed_tokens=setting.max_packed_tokens,
        dtype=setting.dtype,
        gradient_checkpointing=setting.gradient_checkpointing,
        frozen=setting.frozen,
        device=setting.device,
    )
    never_end(policy)  # but where EndingEarly says so
    return grpo_step(policy, EndingEarly(policy, setting.completion_tokens), setting.sizes)


def predictions(setting: Setting, step: GrpoStep) -> dict[str, Moment]:
    """What vidbridge/memory_plan/memory.py says of the prompts of this step."""
    prompts = step.sampler.prompts(0)
    prompt, encoded = prompts[0].prompt, prompts[0].encoded
    spec = ModelConfig(
        name="",
        path="",
        dtype=Dtype(setting.dtype),
        frozen=list(setting.frozen),
        gradient_checkpointing=setting.gradient_checkpointing,
    )
    memory = Memory(
        model=ModelSize.of(step.policy.processor.config, spec), sharding=Sharding(), on_gpu=setting.device != "cpu"
    )
    groups = Groups(
        number=len(prompts),
        siblings=setting.group_size,
        prompt_tokens=len(encoded.input_ids),
        completion_tokens=setting.completion_tokens,
        patches=len(encoded.pixel_values),
    )
    videos = len(prompts) * float(encoded.pixel_values.nbytes + prompt.clips[0].frames.nbytes)
    row, all_patches = groups.in_one_row(setting.max_packed_tokens), groups.number * groups.patches
    return {
        "rollout": memory.sampling("rollout", groups, host=videos),
        "learner": memory.learning(row, all_patches=all_patches, host=videos),
    }


def in_own_process(setting: Setting, **environment: str) -> dict[str, dict[str, float | None]]:
    """``measure`` there, because what one measurement leaves behind would be there for the next to use."""
    command = [sys.executable, "-m", "experiments.bench.plan", "--setting", json.dumps(asdict(setting))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{setting} failed:\n{done.stderr}")
    found: dict[str, dict[str, float | None]] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(setting: Setting) -> list[dict[str, Any]]:
    """A row of figures for each stage."""
    on_cpu = setting.device == "cpu"
    found = in_own_process(setting, **(PAGES_OF_THEIR_OWN if on_cpu else {}))
    by_itself = in_own_process(setting) if on_cpu else found
    return [
        {
            **asdict(setting),
            "stage": stage,
            **figures,
            "error": error(figures["predicted"], figures["measured"]),
            "error_beyond": error(figures["predicted_beyond"], figures["measured_beyond"]),
            "measured_by_itself": by_itself[stage]["measured"],
            "error_by_itself": error(figures["predicted"], by_itself[stage]["measured"]),
        }
        for stage, figures in found.items()
    ]


def error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted and measured else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("predicted memory against measured peaks", repeats=1)
    parser.add_argument("--setting", metavar="JSON", help="measure this one setting here, and print the figures")
    args = parser.parse_args(argv)
    if args.setting:
        print(json.dumps(measure(Setting(**json.loads(args.setting)))))
        return
    settings = [replace(setting, quick=args.quick) for setting in SETTINGS[: 1 if args.quick else None]]
    if torch.cuda.is_available():
        settings += [replace(setting, device="cuda") for setting in settings]
    else:
        CONSOLE.print("there is no CUDA device here: measured on the CPU alone")
    rows: list[dict[str, Any]] = []
    with announcing() as announce:
        for setting in settings:
            announce(label(setting))
            rows += compare(setting)
    show(
        "peak MB, predicted / measured, and the error; beyond: without weights and optimizer; glibc: left to itself",
        ("stage", "in all", "error", "beyond", "error", "glibc", "error"),
        [line(row) for row in rows],
    )
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    finish({"rows": rows, "worst_error": max(errors, default=None)}, args)


def label(setting: Setting) -> str:
    checkpointing = ", checkpointing" if setting.gradient_checkpointing else ""
    return (
        f"{setting.device}, {setting.group_size} completions, {setting.video_tokens} video tokens, "
        f"{setting.max_packed_tokens} packed{checkpointing}"
    )


def line(row: dict[str, Any]) -> tuple[str, ...]:
    setting = Setting(**{each.name: row[each.name] for each in fields(Setting)})
    return (
        f"{label(setting)}: {row['stage']}",
        f"{row['predicted']:.0f} / {number(row['measured'], '.0f')}",
        number(row["error"], "+.0%"),
        f"{row['predicted_beyond']:.0f} / {number(row['measured_beyond'], '.0f')}",
        number(row["error_beyond"], "+.0%"),
        number(row["measured_by_itself"], ".0f"),
        number(row["error_by_itself"], "+.0%"),
    )


if __name__ == "__main__":
    main()
