"""Look at data, check them, write them out: ``python build_data.py check data=vidbridge_r1 data.files.train=..``.

check: every row and every video; preview: contact sheets; build: proxy tasks as files, with their videos.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping

from vidbridge import build, launch
from vidbridge.config import Config
from vidbridge.data.build import COMMANDS
from vidbridge.data.build.options import Options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--strict", action="store_true", help="check: any problem is an exit status of 1")
    parser.add_argument("--number", type=int, help="rows of each task and split; default: all, 4 for preview")
    parser.add_argument("--fps", type=int, default=16, help="build: frames a second of the new videos")
    args, sys.argv[1:] = parser.parse_known_args()

    def body(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
        with build.as_config_errors():
            processor = build.build_processor(config)
            dataset = build.build_dataset(config)
            tasks = build.build_plain_tasks(config, dataset, processor.frames)
        options = Options(folder=run_dir, strict=args.strict, number=args.number, fps=args.fps)
        COMMANDS[args.command](dataset, tasks, options)

    launch.main(body)


if __name__ == "__main__":
    main()
