"""Train: ``python train.py task_mix=proxy reward=combined``; sweep: ``python train.py -m task_mix=qa,proxy seed=0,1``;
what it would hold and cost, and whether it fits: ``python train.py .. plan=true``.

What can be chosen: conf/config.yaml. What happens in a step: vidbridge/step.py. What travels: vidbridge/types.py.
"""

from pathlib import Path
from typing import Any, Mapping

from vidbridge.build.common import as_config_errors
from vidbridge.build.train import build_trainer
from vidbridge.config.schema import Config
from vidbridge.memory_plan import plan
from vidbridge.runtime import launch


def train(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
    """One run; its record and its final model go to ``run_dir``."""
    with as_config_errors():
        trainer = build_trainer(config, public=public, run_dir=run_dir)
    trainer.run()


if __name__ == "__main__":
    launch.main(train, plan=plan.show)
