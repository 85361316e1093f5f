"""How a job starts and ends: Hydra composes, mistakes become one message, a sweep runs each job on its own.

Exit status: 0 done, 1 the data are bad, the disk is full, the run diverged (or a job of a sweep failed), 2 the
configuration is wrong, 143 and 130 stopped by SIGTERM and SIGINT.
What nobody foresaw keeps its traceback; HYDRA_FULL_ERROR=1 shows the traceback of everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from rich.console import Console
from rich.table import Table

from vidbridge.checkpoint import CheckpointError
from vidbridge.config import Config, ConfigError, GrpoConfig, Resume, SftConfig, did_you_mean, require_known
from vidbridge.data.rows import DataError
from vidbridge.judges.base import JudgeLost
from vidbridge.media.decode import VideoError
from vidbridge.policy.engine_local import Diverged
from vidbridge.stopping import Stopped
from vidbridge.track.metrics_file import METRICS

PACKAGE = Path(__file__).parent  # where ${package_file:..} in a yaml starts
CONF = PACKAGE.parent / "conf"
FAILED, BAD_CONFIG = 1, 2
FAILURES = (DataError, VideoError, CheckpointError, Diverged, JudgeLost)  # that have a message for the user
# Of a sweep itself, not of its jobs.
SWEEP_KEYS = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.sweeper", "hydra.launcher")


@dataclass(frozen=True)
class Job:
    """One job of a sweep that has ended."""

    overrides: list[str]
    run_dir: Path
    status: int


def main(body: Callable[[Config, Mapping[str, Any], Path], None]) -> NoReturn:
    """Compose the configuration from the command line, call ``body(config, public, run_dir)``, and exit.

    ``public`` is the configuration for the record: resolved, without secrets, also in ``run_dir``/config.yaml.
    """
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing in its own way
    register()
    jobs: list[Job] = []
    runs: list[tuple[Config, Mapping[str, Any], Path]] = []  # one, or none in a sweep
    mistakes: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN:
            jobs.append(run_job(settings, wants_traceback))
            return
        try:
            runs.append((to_dataclasses(cfg), public(cfg), Path(settings.runtime.output_dir)))
        except (ConfigError, OmegaConfBaseException) as error:
            mistakes.append(error)  # kept from Hydra, which would print about it too

    try:
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
        except HydraException:  # one of which is an OSError
            raise
        except OSError as error:  # all that Hydra does on disk
            raise ConfigError(f"cannot make the folder of the run (hydra.run.dir): {error}") from error
        if mistakes:
            raise mistakes[0]
        for config, record, run_dir in runs:
            with claimed(run_dir, record, again=config.resume is Resume.auto):
                body(config, record, run_dir)
    except (ConfigError, HydraException, OmegaConfBaseException, *FAILURES) as error:
        if wants_traceback:
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(FAILED if isinstance(error, FAILURES) else BAD_CONFIG)
    except Stopped as stopped:
        sys.exit(stopped.status)
    if jobs:
        print_jobs(jobs)
    sys.exit(1 if any(job.status for job in jobs) else 0)


@contextmanager
def claimed(run_dir: Path, record: Mapping[str, Any], *, again: bool) -> Iterator[None]:
    """``run_dir`` is this run's alone: whoever makes its config.yaml has it; ``again``: it may be there already.

    A run that fails before its first record gives the folder back.
    """
    path = run_dir / "config.yaml"
    if again and path.exists():  # the checkpoints know whether it was a run like this one
        yield
        return
    try:
        with path.open("x", encoding="utf-8") as file:
            OmegaConf.save(OmegaConf.create(dict(record)), file)
    except FileExistsError:
        raise ConfigError(f"{run_dir} already holds a run: choose another hydra.run.dir, or resume=auto") from None
    except OSError as error:
        raise ConfigError(f"cannot write into the folder of the run (hydra.run.dir): {error}") from error
    try:
        yield
    except BaseException:
        if not (run_dir / METRICS).exists():
            path.unlink(missing_ok=True)
        raise


def register() -> None:
    """Tell Hydra the schema and the resolver of our own; calling it twice is harmless."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="algo", name="grpo_schema", node=GrpoConfig)
    store.store(group="algo", name="sft_schema", node=SftConfig)
    OmegaConf.register_new_resolver("package_file", lambda name: str(PACKAGE / name), replace=True)


def to_dataclasses(cfg: DictConfig) -> Config:
    """The composed configuration with every cross-check done. Raises ConfigError or an OmegaConf error."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    refuse_extras(config, "")
    return config


def refuse_extras(config: Any, where: str) -> None:
    """`+model.pth=x` makes Hydra add a key that the schema does not have, and OmegaConf an attribute of it."""
    known = [field.name for field in fields(config)]
    for name, value in vars(config).items():
        require_known("key", name, known, where.rstrip(".") or "configuration")
        for part in value if isinstance(value, list) else [value]:
            if is_dataclass(part):
                refuse_extras(part, f"{where}{name}.")


def public(cfg: DictConfig) -> dict[str, Any]:
    """The configuration resolved, but with ``${oc.env:..}`` as it stands: secrets do not go on record.

    While resolving, the resolver of environment variables gives back its own text, so that a value which
    points at such a value, however indirectly, stays unresolved too.
    """
    OmegaConf.register_new_resolver("oc.env", lambda *parts: "${oc.env:" + ",".join(parts) + "}", replace=True)
    try:
        container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_job(settings: Any, wants_traceback: bool) -> Job:
    """One job of a sweep in its own process, so that it starts clean and may fail alone."""
    run_dir, overrides = Path(settings.runtime.output_dir), list(settings.overrides.task)
    folders = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
    # options first: argparse takes no further override after one that follows overrides
    command = [sys.executable, sys.argv[0], *(f"--config-dir={folder}" for folder in folders)]
    command += [f"--config-name={settings.job.config_name}", *overrides, f"hydra.run.dir={quoted(run_dir)}"]
    command += [text for text in settings.overrides.hydra if not text.lstrip("+~").startswith(SWEEP_KEYS)]
    if not any(override.lstrip("+").startswith("track.group=") for override in overrides):
        command.append(f"track.group={quoted(f'sweep {run_dir.parent.parent.name} {run_dir.parent.name}')}")
    environment = dict(os.environ)
    if not wants_traceback:
        del environment["HYDRA_FULL_ERROR"]
    print(f"job {settings.job.num}: {' '.join(overrides)}  ->  {run_dir}", flush=True)
    return Job(overrides, run_dir, subprocess.run(command, env=environment).returncode)


def quoted(value: object) -> str:
    """A text as the value of an override.

    >>> quoted("runs of today/lr=1,2")
    "'runs of today/lr=1,2'"
    """
    return QuotedString(str(value), Quote.single).with_quotes()


def print_jobs(jobs: list[Job]) -> None:
    """A table of the jobs of a sweep with their held-out scores."""
    table = Table(title="sweep: held-out scores, mean of mean / max")
    for column in ("job", "sampled", "greedy", "status", "folder"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        means = ["-", "-"]
        if job.status == 0:
            summary = json.loads((job.run_dir / "summary.json").read_text())
            scores = summary["after"] if "after" in summary else summary["scores"]  # of train.py, of evaluate.py
            means = [f"{scores[kind]['mean']:.3f}" for kind in ("sampled", "greedy")]
        status = "ok" if job.status == 0 else f"failed ({job.status})"
        table.add_row(" ".join(job.overrides), *means, status, os.path.relpath(job.run_dir))
    Console().print(table)


def explain(error: Exception) -> str:
    """What is wrong with the configuration, in a line or a few, with the nearest right spelling where there is one."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        known = [option for option in error.options if not option.startswith("_") and not option.endswith("schema")]
        return f"{group}: there is no '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if not isinstance(cause, OmegaConfBaseException):
        return readable(str(error))
    text = readable(str(cause))
    if "not in struct" in text or "not in '" in text:
        parent = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
        known = [str(key) for key in parent if key != "hydra"]
        return f"{cause.full_key}: there is no such key.{did_you_mean(str(cause.key), known)} Known: {', '.join(known)}"
    return f"{cause.full_key}: {text}" if cause.full_key else text


def readable(text: str) -> str:
    """Without OmegaConf's notes about its own types.

    >>> readable("Value 'abc' is no number\\n    full_key: optim.lr\\n    object_type=OptimConfig")
    "Value 'abc' is no number"
    """
    notes = ("full_key:", "object_type=", "reference_type=")
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.strip().startswith(notes))
