"""Look at data, check them, write them out: ``python build_data.py check data=vidbridge_r1 data.files.train=..``.

What is configured is configured as for evaluate.py: rows are read, shown and answered, and nothing is trained. Results
go to the folder of the run (hydra.run.dir); with resume=auto what is there already is not made again.
"""

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping

from vidbridge.build.common import as_config_errors, build_processor
from vidbridge.build.data_tools import build_job, build_sampler, build_writer, find_processor
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.data.tools.check import check
from vidbridge.data.tools.difficulty import SPREADS, filter_rows
from vidbridge.data.tools.job import alone
from vidbridge.data.tools.materialise import materialise
from vidbridge.data.tools.preview import preview
from vidbridge.data.tools.write_qa import write_qa
from vidbridge.errors import ConfigError
from vidbridge.runtime import collectives, launch


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    door = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    commands = door.add_subparsers(dest="command", required=True)
    helps = {
        "check": "every row and every video: what is wrong where, how much there is, what splits share",
        "preview": "samples as the model sees them, frames and prompt: preview.html and a PNG each",
        "build": "the rows with their videos as files: JSONL, mp4s, a manifest of hashes",
        "write_qa": "MixVidQA questions on clips of data=raw, by a model that sees (judge=openai judge.answers.model=)",
        "filter": "drop the rows that model.path always gets right; all ranks share the work (nproc)",
    }
    known = {name: commands.add_parser(name, help=text, description=text) for name, text in helps.items()}
    for command in known.values():
        command.add_argument("--number", type=int, help="rows of each task and split; all of them, 4 for preview")
    strict = "exit status 1 for any problem, not only where a run would be refused"
    known["check"].add_argument("--strict", action="store_true", help=strict)
    known["build"].add_argument("--fps", type=int, default=16, help="frames a second of the new videos")
    known["filter"].add_argument("--samples", type=int, default=5, help="answers to each row, at temperature 1")
    known["filter"].add_argument("--spread", choices=SPREADS, default="range", help="how captions' event F1 differ")
    known["filter"].add_argument("--threshold", type=float, default=0.2, help="captions that differ less are dropped")
    return door


def run(args: argparse.Namespace, config: EvaluateConfig, public: Mapping[str, Any], run_dir: Path) -> None:
    with as_config_errors():
        work = prepared(args, config, run_dir)
    with alone(run_dir) if collectives.is_rank_0() else nullcontext():
        work()


def prepared(args: argparse.Namespace, config: EvaluateConfig, run_dir: Path) -> Callable[[], None]:
    """The command with all that it needs."""
    if collectives.world_size() > 1 and args.command != "filter":
        raise ConfigError(f"nproc={collectives.world_size()}: only filter makes use of more than one rank")
    job = partial(build_job, config, run_dir=run_dir, number=args.number)
    if args.command == "preview":  # needs no model, but shows more where there is one
        found = find_processor(config)
        return partial(preview, job(found), found)
    processor = build_processor(config)
    match args.command:
        case "check":
            return partial(check, job(processor), processor, strict=args.strict)
        case "build":
            return partial(materialise, job(processor), fps=args.fps)
        case "write_qa":
            return partial(write_qa, job(processor), build_writer(config))
    rows = job(processor)
    evaluator = build_sampler(config, rows, processor)
    answer = partial(evaluator.scored, num_samples=args.samples)
    return partial(
        filter_rows, rows, answer, evaluator.reward.maximum, spread=args.spread, threshold=args.threshold
    )


if __name__ == "__main__":
    known, overrides = parser().parse_known_args()
    launch.main(partial(run, known), overrides, config_name="evaluate")
