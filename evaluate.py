"""Evaluate a model as training does: ``python evaluate.py model.path=outputs/2026-01-31/12-00-00/model``.

Two judges on the completions of a run: ``python evaluate.py judge_agreement judge=exact +judge@agreement.judge=openai
agreement.completions=outputs/2026-01-31/12-00-00/completions.jsonl``.
"""

import sys
from pathlib import Path
from typing import Any, Mapping

from vidbridge import agreement, build, launch
from vidbridge.config import Config
from vidbridge.evaluate import held_out


def evaluate(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
    """Held-out scores of ``model.path``, in summary.json of ``run_dir`` under "scores"."""
    with build.as_config_errors():
        evaluator, tracker = build.build_evaluation(config, public=public, run_dir=run_dir)
    with tracker:
        scores = held_out(evaluator, config.eval, tracker, "the model", step=0)
        parts = {name: part.to_dict() for name, part in scores.items()}
        tracker.finish({**build.labels(config, trains=False), "scores": parts})


def judge_agreement(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
    """How often two judges say the same, in agreement.json of ``run_dir``, and where they do not."""
    with build.as_config_errors():
        first, second, reward = build.build_agreement(config)
        rows = agreement.read_rows(config.agreement.completions)
    agreement.report(agreement.compare(first, second, rows, reward), run_dir)


if __name__ == "__main__":
    if sys.argv[1:2] == ["judge_agreement"]:
        del sys.argv[1]
        launch.main(judge_agreement)
    launch.main(evaluate)
