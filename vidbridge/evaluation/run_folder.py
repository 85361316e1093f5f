"""What ``evaluate.py checkpoint=..`` names: the folder of a run, a PEFT folder, or a model's folder or hub id.

A run is evaluated as it was told to evaluate itself: its config.yaml says what model and frames it is about, which
rows, which judge and which seed, unless the command line says otherwise. So that folder is trusted as a configuration
is.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.config.renamed import with_current_names
from vidbridge.errors import ConfigError
from vidbridge.policy.model_folder import ADAPTER, CONFIG
from vidbridge.record.files import SUMMARY
from vidbridge.runtime.checkpoint import newest

OF_THE_RUN = [each.name for each in fields(EvaluateConfig) if each.metadata.get("of_the_run")]
WHOLE_RUNS = ("model", "experiment", "debug")  # choices that are about many of these at once


def resolve(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Put what ``checkpoint`` names in the place of its name; ``overrides``: what the command line says.

    ConfigError for a run that has left nothing to evaluate.
    """
    if not isinstance(cfg.checkpoint, str):  # null, or training's section of that name
        return
    run, named = Path(cfg.checkpoint), cfg.checkpoint
    cfg.checkpoint = None
    if not (run / "config.yaml").is_file():  # a Hugging Face folder has a config.json
        if run.is_dir() and not any((run / name).is_file() for name in (CONFIG, ADAPTER)):
            raise ConfigError(f"checkpoint={named}: neither a run (config.yaml) nor a model ({CONFIG}) is in there")
        cfg.model.path = named
        return
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    if both := sorted({key for key in keys if key in WHOLE_RUNS}):
        raise ConfigError(f"checkpoint={named} is a run, which says what it is about: leave {both[0]}=.. out")
    _take(cfg, _record(run), ["tasks" if key == "task" else key for key in keys])
    cfg.model.random_weights = False
    if (run / "model").is_dir() and ((run / SUMMARY).is_file() or not (run / "checkpoints").is_dir()):
        cfg.model.path, cfg.model.adapter = str(run / "model"), None  # what the adapters are stands in there
        return
    found, refused = newest(run / "checkpoints")
    if found is None:
        reasons = "".join(f"\n  {line}" for line in refused)
        raise ConfigError(f"checkpoint={named} has neither a finished model/ nor a checkpoint that is whole{reasons}")
    if (run / "untrained").is_dir():  # what it started from
        cfg.model.path = str(run / "untrained")
    cfg.checkpoint = str(found.path)


def _record(run: Path) -> Mapping[str, Any]:
    try:
        record = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    except (OSError, YAMLError) as error:
        raise ConfigError(f"{run / 'config.yaml'} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{run / 'config.yaml'} is no configuration of a run")
    record.get("model", {}).pop("checkpoint", None)  # renamed.GONE
    return {str(key): value for key, value in with_current_names(record).items()}


def _take(cfg: DictConfig, record: Mapping[str, Any], said: Iterable[str]) -> None:
    """The sections OF_THE_RUN from ``record``, but for the keys that were ``said``.

    A run without the section "prompt" is older than conf/prompt: all were asked in the words of prompt=tiny, which is
    what ``cfg`` has where no model is named.
    """
    said = list(said)
    kept = {key: OmegaConf.select(cfg, key) for key in said if key.split(".")[0] in OF_THE_RUN}
    _overlay(cfg, {name: record[name] for name in OF_THE_RUN if name in record and name not in said})
    for key, value in kept.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)


def _overlay(node: DictConfig, values: Mapping[str, Any]) -> None:
    """Set each value; what has a schema key by key, everything else as a whole."""
    for name, value in values.items():
        if isinstance(value, Mapping) and is_dataclass(OmegaConf.get_type(node, name)):
            _overlay(node[name], value)
        else:
            node[name] = value
