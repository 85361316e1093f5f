"""Evaluate a model: ``python evaluate.py checkpoint=outputs/2026-01-31/12-00-00 benchmark=held_out``.

``checkpoint`` is the folder of a run, finished or broken off, or a Qwen2.5-VL folder or hub id; ``benchmark`` one of
conf/benchmark. Two judges on the completions of a run: ``python evaluate.py judge_agreement judge=exact
+judge@agreement.judge=openai agreement.completions=outputs/2026-01-31/12-00-00/completions.jsonl``.
"""

import sys
from pathlib import Path
from typing import Any, Mapping

from vidbridge.build.common import as_config_errors, labels
from vidbridge.build.evaluation import build_agreement, build_evaluation
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.evaluation import agreement, benchmark
from vidbridge.runtime import launch


def evaluate(config: EvaluateConfig, public: Mapping[str, Any], run_dir: Path) -> None:
    """Scores and what papers report, in summary.json of ``run_dir`` under "scores" and "benchmark"."""
    with as_config_errors():
        config = benchmark.with_benchmark(config)
        evaluator, tracker = build_evaluation(config, public=public, run_dir=run_dir)
        known = benchmark.items_so_far(config, public, run_dir, tracker)
    with tracker:
        tracker.finish({**labels(config), **benchmark.ask(evaluator, config, tracker, known)})


def judge_agreement(config: EvaluateConfig, public: Mapping[str, Any], run_dir: Path) -> None:
    """How often two judges say the same, in agreement.json of ``run_dir``, and where they do not."""
    with as_config_errors():
        first, second, reward = build_agreement(config)
        rows = agreement.read_rows(config.agreement.completions)
    of_run = Path(str(config.agreement.completions)).parent
    agreement.report(agreement.compare(first, second, rows, reward), run_dir, run_dir=of_run)


if __name__ == "__main__":
    if sys.argv[1:2] == ["judge_agreement"]:
        launch.main(judge_agreement, sys.argv[2:], config_name="evaluate")
    launch.main(evaluate, config_name="evaluate")
