"""Evaluate a model as training does: ``python evaluate.py model.path=outputs/2026-01-31/12-00-00/model``."""

from pathlib import Path
from typing import Any, Mapping

from vidbridge import build, launch
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


if __name__ == "__main__":
    launch.main(evaluate)
