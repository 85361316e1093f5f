"""lmms-eval on an exported checkpoint, in an environment of its own: its dependencies are not ours.

    make eval-lmms MODEL=outputs/<date>/<time>/model TASKS=videomme,mvbench
    make eval-lmms MODEL=Qwen/Qwen2.5-VL-7B-Instruct TASKS=videomme ARGS='--direct --gpus 8'

With --show the command is only said. What differs from our own evaluation: experiments/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Sequence

from omegaconf import OmegaConf

from vidbridge.policy.model_folder import ADAPTER
from vidbridge.runtime.launch import CONF

PYTHON = Path(".venv-lmms/bin/python")
# names of lmms-eval 0.7.3; the paper's table has IntentQA and DREAM-1K too, which it does not know
TASKS = ("videomme", "longvideobench_val_v", "mvbench", "mmvu_val", "nextqa_mc_test")
MAX_FRAMES = 128
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 196 * 28 * 28  # of a frame, as trained
LONGEST, LONGEST_DIRECT = 2048, 32  # tokens of a reply; the tasks' own 16 leave no room to reason


def system_message(model: str) -> str | None:
    """Of the run that ``model`` is the model/ of; of prompt=qwen where it is of none. The questions are lmms-eval's."""
    run = Path(model).parent / "config.yaml"
    of_run = OmegaConf.load(run) if Path(model).is_dir() and run.is_file() else OmegaConf.create({"prompt": None})
    prompt = of_run.get("prompt") or OmegaConf.load(CONF / "prompt" / "qwen.yaml")
    message = prompt.system.thinking
    return None if message is None else message.format()


def model_type(model: str) -> str:
    """Return the family of a folder; a hub id is taken for a Qwen2.5-VL."""
    config = Path(model) / "config.json"
    found: str = json.loads(config.read_text()).get("model_type") if config.is_file() else "qwen2_5_vl"
    return found


def command(
    model: str, tasks: Sequence[str], *, system: str | None, direct: bool, gpus: int, output: str
) -> list[str]:
    """What to run. To reason, the model needs our system message, which only the simple model class takes."""
    arguments = {
        "pretrained": model,
        "max_num_frames": MAX_FRAMES,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "attn_implementation": "sdpa",
    }
    if system is not None and not direct:
        arguments["system_prompt"] = f'"{system}"'  # it holds a comma; lmms-eval leaves the quotes in the message
    words = [str(PYTHON), "-m", "accelerate.commands.launch", f"--num_processes={gpus}", "-m", "lmms_eval"]
    words += ["--model", "qwen2_5_vl", "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    words += [] if direct else ["--force_simple"]
    words += ["--tasks", ",".join(tasks), "--batch_size", "1"]
    words += ["--gen_kwargs", f"max_new_tokens={LONGEST_DIRECT if direct else LONGEST}"]
    return [*words, "--log_samples", "--output_path", output]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="lmms-eval on an exported checkpoint")
    parser.add_argument("model", help="the model/ of a run, or a hub id")
    parser.add_argument("--tasks", default=TASKS[0], help=f"of lmms-eval, with commas between; the paper's: {TASKS}")
    parser.add_argument("--direct", action="store_true", help="the bare question, as the paper asks its base model")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--output", default="outputs/lmms_eval")
    parser.add_argument("--show", action="store_true", help="only say the command")
    args = parser.parse_args(argv)
    if Path(args.model).is_dir() and not (Path(args.model) / "config.json").is_file():
        adapter = (Path(args.model) / ADAPTER).is_file()
        hint = "adapters must be merged (model.adapter.merged=true)" if adapter else "of a run it is the folder model/"
        parser.error(f"{args.model} holds no config.json: {hint}")
    if (family := model_type(args.model)) != "qwen2_5_vl":
        parser.error(f"{args.model} is a {family}: the command is that for Qwen2.5-VL, no other has been tried")
    system = system_message(args.model)
    if system is not None and '"' in system:
        parser.error("the system message (prompt.system.thinking) holds a \", which ends it for lmms-eval")
    words = command(
        args.model, args.tasks.split(","), system=system, direct=args.direct, gpus=args.gpus, output=args.output
    )
    print(shlex.join(words), flush=True)
    return 0 if args.show else subprocess.run(words).returncode


if __name__ == "__main__":
    sys.exit(main())
