"""How near to the device's limits: a random model of a released size in bfloat16 on one CUDA device.

    python -m experiments.bench.gpu [--model qwen3_vl_8b] [--seconds 240] [--json FILE]
    python -m experiments.bench.gpu --quick --device cpu    # the same code on a tiny one, where there is no GPU

Nothing is downloaded. One group: 8 completions of 512 tokens after 1568 video tokens. Five parts, a row each; the file
is written anew after each of them, and a part that fails (out of memory) leaves the reason in its row.
- `device`: a large copy and a large product of matrices, and the peak by the data sheet where the device is known.
- `compilations`: forward and backward of groups of four lengths: how often something was compiled, and for how long.
- `learner`: `mfu` is the arithmetic that the shared-prefix rule makes necessary (`needed_flops`), divided by the time
  of forward and backward and by the peak. `speedup` is against the peers' rows, which repeat prompt and video. They run
  on the same module, with our patch embedding, and two at a time: all eight would not fit.
- `rollout`: `decode_bandwidth_frac` is the time in which a decoding step could read what it must (`needed_bytes`) at
  the speed of the copy, divided by the time that it takes, sampling and captures included.
- `step`: a GRPO step with AdamW on 32-bit copies, the vision tower frozen, and its peak against the one that plan=true
  would predict. 3B takes some 75 GB.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

import torch
from torch._dynamo.utils import counters
from transformers import PretrainedConfig

from experiments.bench import plan
from experiments.bench.families import TINY
from experiments.bench.harness import CONSOLE, announcing, arguments, finish, medians, peak_extra_mb, seconds_of, show
from experiments.bench.learner import Learner, relative_error
from experiments.bench.needed import needed_bytes, needed_flops
from experiments.bench.shape import (
    FRAMES,
    Sides,
    engine_for,
    never_end,
    random_group,
    random_module,
    released,
    small,
    write_settings,
)
from experiments.bench.step import grpo_step
from vidbridge.backbones import backbone_of
from vidbridge.policy.loading import freeze
from vidbridge.policy.policy import Policy
from vidbridge.policy.processor import Processor
from vidbridge.rollout.shared_prefix import SharedPrefixRollout
from vidbridge.runtime.launch import CONF
from vidbridge.types import Group, SamplingParams

MODELS = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if not file.stem.startswith(("_", "tiny")))
# dense bfloat16, TFLOP/s, by the data sheets; the first name that fits
PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362}
ROWS_AT_ONCE = 2
LENGTHS = (1.0, 0.5, 0.75, 0.3)  # of completions, as parts of the full one


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done, and how large the copy and the product are that tell the speed of the device."""

    video_tokens: int = 1568
    group_size: int = 8
    completion_tokens: int = 512
    copied: int = 2**31  # bytes
    multiplied: int = 8192  # rows and columns


QUICK = Work(video_tokens=32, group_size=2, completion_tokens=4, copied=2**20, multiplied=256)


@dataclass(frozen=True)
class Bench:
    """Every method is a part and returns its row."""

    policy: Policy
    work: Work
    repeats: int

    def device(self) -> dict[str, Any]:
        return {
            "copy_gb_per_s": self._rates["copy"] / 1e9,
            "product_tflops": self._rates["product"] / 1e12,
            "peak_tflops": self._rates["peak"] / 1e12,
            "peak_is_measured": self._rates["peak"] == self._rates["product"],
            "parameters": sum(weight.numel() for weight in self.policy.module.parameters()),
            "weights_mb": sum(weight.nbytes for weight in self.policy.module.parameters()) / 1e6,
        }

    def compilations(self) -> dict[str, Any]:
        before, seconds = num_compilations(), []
        for part in LENGTHS:
            seconds.append(seconds_of(self._learner(max(2, round(part * self.work.completion_tokens))).packed))
        return {"compilations": num_compilations() - before, "lengths": len(LENGTHS), "seconds": seconds}

    def learner(self) -> dict[str, Any]:
        learner, module = self._learner(self.work.completion_tokens), self.policy.module
        seconds = medians({"packed": learner.packed, "repeated": learner.repeated}, self.repeats)
        packed_mb, packed = peak_extra_mb(learner.packed, module.device)
        repeated_mb, repeated = peak_extra_mb(learner.repeated, module.device)
        flops = needed_flops(self.policy, learner.group)
        return {
            "mfu": sum(flops.values()) / seconds["packed"] / self._rates["peak"],
            "speedup": seconds["repeated"] / seconds["packed"],
            "packed_s": seconds["packed"],
            "repeated_s": seconds["repeated"],
            "repeated_rows_at_once": ROWS_AT_ONCE,
            "packed_mb": packed_mb,
            "repeated_mb": repeated_mb,
            "grad_rel_err": relative_error(packed, repeated),  # of bfloat16: percents
            "flops": flops,
            **self._sizes,
        }

    def rollout(self) -> dict[str, Any]:
        never_end(self.policy)
        num_tokens, group_size = self.work.completion_tokens, self.work.group_size

        def generate(tokens: int) -> None:
            rollout, sampling = SharedPrefixRollout(self.policy), SamplingParams(max_completion_tokens=tokens)
            rollout.generate([self._group.encoded], group_size, sampling, seed=0)

        lengths = {"one token": 1, "two tokens": 2, "all tokens": num_tokens}
        seconds = medians({name: partial(generate, tokens) for name, tokens in lengths.items()}, self.repeats)
        step_s = (seconds["all tokens"] - seconds["one token"]) / (num_tokens - 1)
        bound_s = needed_bytes(self.policy, self._group, num_tokens) / self._rates["copy"]
        return {
            "decode_bandwidth_frac": bound_s / step_s,
            "decode_tokens_per_s": group_size / step_s,
            "decode_step_s": step_s,
            "decode_bound_s": bound_s,
            "prefill_s": seconds["one token"],
            "first_step_s": seconds["two tokens"] - seconds["one token"],  # a capture is in it
            "rollout_mb": peak_extra_mb(partial(generate, num_tokens), self.policy.module.device)[0],
            **self._sizes,
        }

    def step(self) -> dict[str, Any]:
        """The last part: the policy is not what it was."""
        policy, device = self.policy, self.policy.module.device
        freeze(policy.module, ["visual"])
        policy.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.engine = engine_for(policy.module)
        setting = plan.Setting(
            group_size=self.work.group_size,
            completion_tokens=self.work.completion_tokens,
            video_tokens=self.work.video_tokens,
            num_prompts=2,
            max_packed_tokens=policy.max_packed_tokens,
            gradient_checkpointing=True,
            frozen=("visual",),
            device="cuda",  # in bfloat16 on the CPU too
        )
        rollout = SharedPrefixRollout(policy)
        step = grpo_step(policy, rollout, setting.sizes)
        predicted = max(moment.total for moment in plan.predictions(setting, step).values())
        step(0)  # the optimizer makes its tensors
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        times = {name: value for name, value in step(0).metrics.items() if name.startswith("time/")}
        return {
            **{name.removeprefix("time/"): value for name, value in times.items()},
            "predicted_mb": predicted / 1e6,
            "measured_mb": torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else None,
            "num_prompts": setting.num_prompts,
            **self._sizes,
        }

    @cached_property
    def _rates(self) -> dict[str, float]:
        """Bytes and operations a second."""
        device, work = self.policy.module.device, self.work
        calls = {"copy": copier(work.copied, device), "product": multiplier(work.multiplied, device)}
        seconds = medians(calls, self.repeats)
        product = 2 * work.multiplied**3 / seconds["product"]
        return {"copy": 2 * work.copied / seconds["copy"], "product": product, "peak": peak_rate(device) or product}

    @cached_property
    def _group(self) -> Group:
        return self._group_of(self.work.completion_tokens)

    def _group_of(self, completion_tokens: int) -> Group:
        return random_group(
            self.policy.processor,
            video_tokens=self.work.video_tokens,
            group_size=self.work.group_size,
            completion_tokens=completion_tokens,
        )

    def _learner(self, completion_tokens: int) -> Learner:
        sides = Sides(plain=self.policy.module, policy=self.policy)
        return Learner(sides, self._group_of(completion_tokens), ROWS_AT_ONCE)

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "prompt_tokens": len(self._group.encoded.input_ids),
            "group_size": self.work.group_size,
            "completion_tokens": self.work.completion_tokens,
        }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "device": Bench.device,
    "compilations": Bench.compilations,
    "learner": Bench.learner,
    "rollout": Bench.rollout,
    "step": Bench.step,
}


def load_policy(config: PretrainedConfig, device: torch.device) -> Policy:
    """Made where it runs: the same module that load_model makes of a folder."""
    with TemporaryDirectory() as folder:
        write_settings(Path(folder), config)
        processor = Processor.from_folder(folder, FRAMES)
    module = random_module(config, device)
    backbone_of(config.model_type).prepare(module)
    return Policy(module, processor)


def num_compilations() -> int:
    """In this process so far: graphs of torch.compile."""
    return counters["stats"]["unique_graphs"]


def copier(num_bytes: int, device: torch.device) -> Callable[[], Any]:
    """Reads and writes ``num_bytes`` each."""
    source, target = torch.zeros(2, num_bytes, dtype=torch.uint8, device=device)
    return partial(target.copy_, source)


def multiplier(size: int, device: torch.device) -> Callable[[], Any]:
    """2 * size**3 operations."""
    one, other, out = torch.zeros(3, size, size, dtype=torch.bfloat16, device=device)
    one.normal_()
    other.normal_()
    return partial(torch.mm, one, other, out=out)


def peak_rate(device: torch.device) -> float | None:
    """By the data sheet; None for a device that is not in the list."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tera * 1e12 for known, tera in PEAKS.items() if known in name), None)


def row_of(part: str, bench: Bench) -> dict[str, Any]:
    try:
        return {"part": part, **PARTS[part](bench)}
    except Exception as error:  # the others can still be measured
        CONSOLE.print(traceback.format_exc(), markup=False, highlight=False)
        return {"part": part, "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 if a part has failed."""
    parser = arguments("a large model on one GPU", repeats=5)
    parser.add_argument("--model", choices=MODELS, default="qwen2_5_vl_3b", help="--quick: a tiny one of its family")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no part begins after so many")
    args = parser.parse_args(argv)
    began = time.monotonic()
    if args.device == "cuda" and not torch.cuda.is_available():
        reason = "there is no CUDA device here"
        CONSOLE.print(f"{reason}: nothing is measured. --device cpu --quick shows that the code runs")
        finish({"gpu": None, "reason": reason, "rows": []}, args)
        return 0
    device = torch.device(args.device)
    config, work = released(args.model), Work()
    if args.quick:
        config, work = small(TINY, config.model_type), QUICK
    bench = Bench(load_policy(config, device), work, args.repeats)
    model = f"a tiny {config.model_type}" if args.quick else args.model
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        with announcing() as announce:
            announce(part)
        late = time.monotonic() - began > args.seconds
        rows.append({"part": part, "failed": "no time was left"} if late else row_of(part, bench))
        finish({"gpu": gpu, "model": model, "rows": rows}, args)
    show(
        f"{model} on {gpu or 'the CPU'}",
        ("figure", "value"),
        [
            (f"{row['part']}: {name}", f"{value:.4g}" if isinstance(value, float) else str(value))
            for row in rows
            for name, value in row.items()
            if name != "part" and not isinstance(value, (dict, list))
        ],
    )
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
