"""What a study is: experiments/ablations/<name>.yaml, checked whole before anything runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vidbridge.config.checks import require_known
from vidbridge.config.schema import Config
from vidbridge.errors import ConfigError
from vidbridge.runtime import launch

HERE = Path(__file__).parent
_RESERVED = ("seed", "resume", "track.group", "hydra.run.dir")  # of the runner, not of a row
_ROW_NAME = re.compile(r"[a-z0-9_]+")


@dataclass
class Row:
    """One line of the table: a model, trained as the overrides say, or not trained at all."""

    title: str = MISSING
    overrides: List[str] = field(default_factory=list)
    trains: bool = True  # False: the model as it is, scored by evaluate.py
    unequal: List[str] = field(default_factory=list)  # of the manifest's `equal`, what this row is there to vary
    paper: Dict[str, float] = field(default_factory=dict)  # by column of the paper's table


@dataclass
class Claim:
    """What the study is to find out: that one row scores higher in a task than another."""

    says: str = MISSING
    task: str = MISSING
    higher: str = MISSING  # a row
    lower: str = MISSING


@dataclass
class Manifest:
    """A study: every row with every seed."""

    question: str = MISSING
    baseline: str = MISSING  # the row that the others are compared to
    seeds: List[int] = MISSING
    equal: List[str] = field(default_factory=list)  # keys of the configuration, the same in all rows that train
    common: List[str] = field(default_factory=list)  # overrides of every row, before its own
    rows: Dict[str, Row] = MISSING
    claims: List[Claim] = field(default_factory=list)

    def overrides(self, row: str) -> list[str]:
        return [*self.common, *self.rows[row].overrides]


def find(name: str) -> Path:
    """The file of a study: one of this folder's by name, or any by path."""
    if name.endswith(".yaml"):
        return Path(name)
    require_known("study", name, sorted(path.stem for path in HERE.glob("*.yaml")), "experiments/ablations")
    return HERE / f"{name}.yaml"


def read(path: Path) -> Manifest:
    """The study in ``path``; ConfigError names the file and the place of what is wrong in it."""
    try:
        manifest = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Manifest), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {launch.explain(error)}") from error
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(manifest, Manifest)
    try:
        check(manifest)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return manifest


def check(manifest: Manifest) -> None:
    """Every row composes, no two are the same, and what shall be equal is."""
    if not manifest.rows or not manifest.seeds:
        raise ConfigError("a study needs rows and seeds")
    if len(set(manifest.seeds)) < len(manifest.seeds) or min(manifest.seeds) < 0:
        raise ConfigError(f"seeds must be different and not negative, got {manifest.seeds}")
    require_known("row", manifest.baseline, manifest.rows, "baseline")
    seen: dict[str, str] = {}
    values: dict[str, tuple[str, Any]] = {}
    tasks: dict[str, Any] = {}
    for name, row in manifest.rows.items():
        if not _ROW_NAME.fullmatch(name):
            raise ConfigError(f"rows.{name}: a name is made of a-z, 0-9 and _")
        config = composed(name, manifest.overrides(name))
        tasks[name] = config.tasks
        same = seen.setdefault(f"{row.trains} {config}", name)
        if same != name:
            raise ConfigError(f"rows.{name} is the same as rows.{same}")
        for key in row.unequal:
            require_known("key", key, manifest.equal, f"rows.{name}.unequal")
        for key in manifest.equal:
            value = _value(config, key)
            if row.trains and key not in row.unequal:
                first, expected = values.setdefault(key, (name, value))
                if value != expected:
                    raise ConfigError(
                        f"{key} shall be equal, but is {value} in rows.{name} and {expected} in rows.{first}; "
                        f"if the row is there to vary it, say so in rows.{name}.unequal"
                    )
    for index, claim in enumerate(manifest.claims):
        for row_name in (claim.higher, claim.lower):
            require_known("row", row_name, manifest.rows, f"claims[{index}]")
            require_known("task", claim.task, tasks[row_name], f"claims[{index}]")


def composed(name: str, overrides: List[str]) -> Config:
    """The configuration of a row, checked as a run of it would be."""
    for override in overrides:
        if override.lstrip("+~").split("=")[0] in _RESERVED:
            raise ConfigError(f"rows.{name}: {override}: that is set for every run of a study")
    launch.register()
    try:
        with initialize_config_dir(str(launch.CONF), version_base="1.3"):
            return launch.to_dataclasses(compose("config", overrides))
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"rows.{name}: {launch.explain(error)}") from error


def _value(config: Any, key: str) -> Any:
    node = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else getattr(node, part, None)
    if node is None:
        raise ConfigError(f"equal: the configuration has no value at '{key}'")
    return node
