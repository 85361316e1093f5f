"""How a run starts and ends: Hydra composes, mistakes become one message. The jobs of a sweep: sweep.py.

Exit status: 0 done, 1 the data are bad, the disk is full, the run diverged, a rank died (or a job of a sweep failed;
with plan=true: it does not fit; check_model: the model is not what is assumed), 2 the configuration is wrong, 143 and
130 stopped by SIGTERM and SIGINT. With many ranks (ranks.py) it is the same.
What nobody foresaw keeps its traceback; HYDRA_FULL_ERROR=1 shows the traceback of everything.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NoReturn, Sequence

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from vidbridge.config.checks import did_you_mean, require_known
from vidbridge.config.choices import Resume
from vidbridge.config.evaluate import OF_TRAINING, EvaluateConfig, is_of_training
from vidbridge.config.instantiate import checked
from vidbridge.config.schema import Config, GrpoConfig, RunConfig, SftConfig
from vidbridge.errors import ConfigError, JobFailed, RankFailed, Stopped, UserError
from vidbridge.evaluation import run_folder
from vidbridge.record.files import CHECK, RECORD
from vidbridge.runtime import collectives, ranks
from vidbridge.runtime.cores import Usage, advice, others_busy
from vidbridge.runtime.ranks import Ending
from vidbridge.runtime.signals import StopSignals
from vidbridge.runtime.sweep import Job, print_jobs, run_job

PACKAGE = Path(__file__).parents[1]  # where ${package_file:..} in a yaml starts
CONF = PACKAGE.parent / "conf"

Body = Callable[[Any, Mapping[str, Any], Path], None]  # the first is a RunConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as a rank needs to know it: ``body(config, public, run_dir)`` is the whole of the run."""

    body: Body
    config: RunConfig
    public: Mapping[str, Any]
    run_dir: Path
    traceback: bool  # of every error, as HYDRA_FULL_ERROR=1 asks


def main(
    body: Body,
    overrides: Sequence[str] | None = None,
    *,
    config_name: str = "config",
    plan: Callable[[Config], bool] | None = None,
) -> NoReturn:
    """Compose conf/``config_name``.yaml, call ``body(config, public, run_dir)`` on every rank, and exit.

    ``overrides`` are the whole command line unless the door has read a part of it.
    ``public`` is the configuration for the record: resolved, without secrets, also in ``run_dir``/config.yaml.
    With plan=true ``plan(config)`` says instead whether the run would fit, and no folder is claimed.
    """
    started = Usage.now()
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing in its own way
    jobs: list[Job] = []
    try:
        run = compose(body, sys.argv[1:] if overrides is None else overrides, config_name, jobs, wants_traceback)
        if run is None:
            ending = Ending(status=UserError.status if any(job.status for job in jobs) else 0)
        elif isinstance(run.config, Config) and run.config.plan:
            ending = Ending(status=planned(run.config, plan, run.run_dir))
        elif run.config.nproc > 1:
            tell_of_cores(run.config, started)
            ending = ranks.start(on_rank, run, run.config.nproc, patience_s=run.config.hang_s)
        else:
            tell_of_cores(run.config, started)
            run_here(run)
            ending = Ending(status=0)
    except (Exception, Stopped) as error:
        ending = ending_of(error, wants_traceback)
        if not ending.foreseen and not ranks.is_rank():
            raise
    if ending.message:
        print(ending.message, file=sys.stderr)
    if jobs:
        print_jobs(jobs)
    ranks.end(ending.status)


def compose(
    body: Body, overrides: Sequence[str], config_name: str, jobs: list[Job], wants_traceback: bool
) -> Run | None:
    """Return the run that the command line asks for; None for a sweep, whose jobs have run by then (``jobs``)."""
    register()
    if config_name == "evaluate" and (of_training := [text for text in overrides if is_of_training(text)]):
        raise ConfigError(f"{of_training[0]}: nothing is trained here, leave it out")
    # where Hydra reads them; deepspeed adds an argument that says again what the environment says
    sys.argv[1:] = [text for text in overrides if not (ranks.is_rank() and text.startswith("--local_rank="))]
    door, here = os.path.abspath(sys.argv[0]), os.getpid()
    found: list[Run] = []
    mistakes: list[Exception] = []

    def task(cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        if settings.mode is RunMode.MULTIRUN:
            job = run_job(door, settings, wants_traceback)
            jobs.append(job)
            if job.status and os.getpid() != here:  # hydra/launcher=slurm: that list is a copy, and an error travels
                raise JobFailed(f"{' '.join(job.overrides)} failed ({job.status}): see {job.run_dir}")
            return
        try:
            run_folder.resolve(cfg, settings.overrides.task)
            config, run_dir = to_dataclasses(cfg), Path(settings.runtime.output_dir)
            found.append(Run(body=body, config=config, public=public(cfg), run_dir=run_dir, traceback=wants_traceback))
            if ranks.is_rank():
                check_outside(config, settings.overrides.hydra)
        except (ConfigError, OmegaConfBaseException) as error:
            mistakes.append(error)  # kept from Hydra, which would print about it too

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except HydraException:  # one of which is an OSError
        raise
    except OSError as error:  # all that Hydra does on disk
        raise ConfigError(f"cannot make the folder of the run (hydra.run.dir): {error}") from error
    if mistakes:
        raise mistakes[0]
    return found[0] if found else None


def check_outside(config: RunConfig, hydra_overrides: Sequence[str]) -> None:
    """Every rank composes for itself where others start them: each must come to the same."""
    if config.nproc > 1:
        raise ConfigError(f"nproc={config.nproc}, but the ranks are started already (RANK is set): leave nproc out")
    if int(os.environ["WORLD_SIZE"]) > 1 and not any(text.startswith("hydra.run.dir=") for text in hydra_overrides):
        raise ConfigError("give hydra.run.dir=<folder>: the ranks would each name one after the time they start")


def run_here(run: Run) -> None:
    """Run on this rank, one of many or the only one."""
    with StopSignals().installed(), ranks.joined(run.config), ExitStack() as stack:
        with collectives.fail_together():
            if collectives.is_rank_0():
                stack.enter_context(claimed(run.run_dir, run.public, again=run.config.resume is Resume.auto))
            else:  # one console is enough
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        run.body(run.config, run.public, run.run_dir)


def tell_of_cores(config: RunConfig, started: Usage) -> None:
    """One line where threads will wait for cores; computing on a GPU few threads do."""
    if ranks.is_rank() or config.model.device != "cpu" and torch.cuda.is_available():
        return  # who started the ranks has said how many threads they get
    given = os.environ.get("OMP_NUM_THREADS")
    each = torch.get_num_threads() if config.nproc == 1 or given else ranks.threads_of_each(config.nproc)
    if told := advice(each, config.nproc, others_busy(started)):
        print(f"note: {told}", flush=True)


def on_rank(run: Run) -> Ending:
    """``run_here`` in a process that ranks.start has made for it."""
    try:
        run_here(run)
    except (Exception, Stopped) as error:
        return ending_of(error, run.traceback)
    return Ending(status=0)


def ending_of(error: BaseException, wants_traceback: bool) -> Ending:
    """The exit status and the message that an error means; its traceback where nobody foresaw it."""
    if isinstance(error, Stopped):
        return Ending(status=error.status)
    if isinstance(error, RankFailed):
        return Ending(status=error.status, message=f"error: {error}", lost=True)
    if wants_traceback or not isinstance(error, (UserError, HydraException, OmegaConfBaseException)):
        text = "".join(traceback.format_exception(error))
        return Ending(status=UserError.status, message=text, foreseen=False, lost=collectives.is_lost_connection(error))
    status = error.status if isinstance(error, UserError) else ConfigError.status
    return Ending(status=status, message=f"error: {explain(error)}")


def planned(config: Config, plan: Callable[[Config], bool] | None, run_dir: Path) -> int:
    """The exit status of a plan; the folder that Hydra made for a run goes again, unless something is in it."""
    with suppress(OSError):
        run_dir.rmdir()
    if plan is None:
        raise ConfigError("plan=true belongs to train.py: nothing else has a plan")
    return 0 if plan(config) else UserError.status


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
        if not any((run_dir / name).exists() for name in (*RECORD, CHECK)):
            path.unlink(missing_ok=True)
        raise


def register() -> None:
    """Tell Hydra the schema and the resolver of our own; calling it twice is harmless."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    evaluate = OmegaConf.structured(EvaluateConfig)
    OmegaConf.set_struct(evaluate, False)  # for OF_TRAINING, which to_dataclasses leaves out
    store.store(name="evaluate_schema", node=evaluate)
    store.store(group="algo", name="grpo_schema", node=GrpoConfig)
    store.store(group="algo", name="sft_schema", node=SftConfig)
    OmegaConf.register_new_resolver("package_file", lambda name: str(PACKAGE / name), replace=True)


def to_dataclasses(cfg: DictConfig) -> Any:
    """Return the composed configuration, a Config or an EvaluateConfig, with every check done.

    Raises ConfigError or an OmegaConf error.
    """
    config = OmegaConf.to_object(used(cfg))
    assert isinstance(config, RunConfig)
    refuse_extras(config, "")
    return checked(config)


def used(cfg: DictConfig) -> DictConfig:
    """Return the configuration without OF_TRAINING, where nothing is trained."""
    if OmegaConf.get_type(cfg) is EvaluateConfig:
        cfg = cfg.copy()
        OmegaConf.set_struct(cfg, False)
        for key in OF_TRAINING:
            cfg.pop(key, None)
    return cfg


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
        container = OmegaConf.to_container(used(cfg), resolve=True, enum_to_str=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def explain(error: Exception) -> str:
    """Return what is wrong with the configuration in a few lines, with the nearest right spelling if there is one."""
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
    """Return the text without OmegaConf's notes about its own types.

    >>> readable("Value 'abc' is no number\\n    full_key: optim.lr\\n    object_type=OptimConfig")
    "Value 'abc' is no number"
    """
    notes = ("full_key:", "object_type=", "reference_type=")
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.strip().startswith(notes))
