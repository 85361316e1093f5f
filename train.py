"""Train: ``python train.py task_mix=proxy reward=combined``; sweep: ``python train.py -m task_mix=qa,proxy seed=0,1``;
what it would hold and cost, and whether it fits: ``python train.py .. plan=true``.

What can be chosen: conf/config.yaml. What happens in a step: vidbridge/step.py. What travels: vidbridge/types.py.
"""

from pathlib import Path
from typing import Any, Mapping

from vidbridge import build, launch, plan
from vidbridge.config import Config


def train(config: Config, public: Mapping[str, Any], run_dir: Path) -> None:
    """One run; its record and its final model go to ``run_dir``."""
    with build.as_config_errors():
        trainer = build.build_trainer(config, public=public, run_dir=run_dir)
    trainer.run()


if __name__ == "__main__":
    launch.main(train, plan=plan.show)
