"""From a node with a ``_target_`` to the object: what may be named, and which arguments it may be given.

A configuration file is data and may not call what it likes: a name must start with "vidbridge." or a prefix in
``allowed_targets``, and so must the module that the thing named really comes from. Names and arguments of all
nodes are checked when the configuration is composed, before anything is loaded.
"""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import (
    Any,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from vidbridge.config.checks import require, require_known
from vidbridge.config.evaluate import EvaluateConfig
from vidbridge.config.renamed import current_name
from vidbridge.config.schema import Config, GrpoConfig, RunConfig
from vidbridge.errors import ConfigError
from vidbridge.policy.adapters import LoraConfig
from vidbridge.policy.engines.base import EngineConfig
from vidbridge.rollout.base import RolloutConfig
from vidbridge.tasks.base import Task

T = TypeVar("T")
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
Target = Callable[..., Any]
HYDRA_KEYS = ("_target_", "_args_", "_convert_", "_partial_", "_recursive_")
TO_BE_INJECTED = ("judge",)  # parameters of rewards that no configuration gives


def checked(config: AnyConfig) -> AnyConfig:
    """Return ``config`` with its rollout, adapter, and engine if it trains, as the dataclasses that they name.

    Every other node is checked. ConfigError for a wrong name or argument, a task under another key than its name, and
    one that the prompt has no text for.
    """
    rewards = {"eval.reward": config.eval.reward}
    tasks = {"tasks": config.tasks}
    nodes = {"data": config.data, "judge": config.judge}
    rollout = make_a(RolloutConfig, config, "rollout", config.rollout)  # type: ignore[type-abstract]
    named: dict[str, Any] = {"rollout": rollout}
    if config.model.adapter is not None:
        adapter = make_a(LoraConfig, config, "model.adapter", config.model.adapter)
        named["model"] = replace(config.model, adapter=adapter)
    if isinstance(config, Config):
        rewards["reward"] = config.reward
        named["engine"] = make_a(EngineConfig, config, "engine", config.engine)  # type: ignore[type-abstract]
        if isinstance(config.algo, GrpoConfig) and config.algo.correction == "none":
            for key, whole in (("top_p", 1.0), ("min_p", 0.0)):
                require(
                    getattr(rollout, key) == whole,
                    f"rollout.{key}={getattr(rollout, key):g} samples from a part of the distribution that is learnt: "
                    f"set algo.correction=token_truncation, which weighs the tokens, or rollout.{key}={whole:g}",
                )
    if isinstance(config, EvaluateConfig):
        rewards["benchmark.reward"], tasks["benchmark.tasks"] = config.benchmark.reward, config.benchmark.tasks
        nodes |= {"benchmark.data": config.benchmark.data, "agreement.judge": config.agreement.judge}
    for where, reward in rewards.items():
        for part in ("gates", "terms") if reward else ():
            nodes |= {f"{where}.{part}.{name}": node for name, node in reward[part].items()}
    for where, node in nodes.items():
        if node is not None:  # null takes a term out, and leaves a benchmark with the data of training
            check(where, node, prefixes(config), TO_BE_INJECTED)
    for where, of_tasks in tasks.items():
        for name, node in of_tasks.items():
            task = make_a(Task, config, f"{where}.{name}", node)  # type: ignore[type-abstract]
            told = f"{where}.{name} builds the task '{task.name}': call the key and the task the same"
            require(task.name == name, told)
            config.prompt.check(name, task.placeholders)
    return replace(config, **named)


def make(config: RunConfig, where: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """Check ``node`` and return the object that it describes. ConfigError from the check; the class raises its own.

    ``injected`` are objects a configuration cannot hold; those that the target has no parameter for are left out
    (a reward that asks no judge).
    """
    target = check(where, node, prefixes(config), injected)
    wanted = {name: value for name, value in injected.items() if name in inspect.signature(target).parameters}
    try:
        return instantiate(dict(node), **wanted, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error


def make_a(kind: type[T], config: RunConfig, where: str, node: Mapping[str, Any]) -> T:
    """Return what ``make`` gives; ConfigError if that is not a ``kind``, or its class refuses to be made."""
    try:
        found = make(config, where, node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except TypeError as error:  # an abstract class
        raise ConfigError(f"{where}: {error}") from error
    require(isinstance(found, kind), f"{where}._target_: {node['_target_']} is not a {kind.__name__}")
    return cast(T, found)


def function_named(config: RunConfig, where: str, name: str, known: Mapping[str, T]) -> T:
    """Return the function that ``known`` has under ``name``, or the one of that dotted name.

    ConfigError if there is none, or if its module is not in ``allowed_targets``.
    """
    return known[name] if name in known else cast(T, _resolve(where, name, prefixes(config)))


def prefixes(config: RunConfig) -> tuple[str, ...]:
    return "vidbridge.", *config.allowed_targets


def check(where: str, node: Any, prefixes: tuple[str, ...], injected: Collection[str] = ()) -> Target:
    """Return the class or function that ``node`` names.

    ConfigError if it, or one that is named inside of the node, is not allowed, or is given an argument that does not
    exist or is of another type, or lacks one that is not in ``injected`` either.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{where} needs a _target_: the dotted name of a class")
    for path, inner in _inner_nodes(where, node):
        check(path, inner, prefixes)
    target = _resolve(f"{where}._target_", node["_target_"], prefixes)
    parameters = inspect.signature(target).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    # a dataclass keeps its own annotations, which know the modules of its bases
    hints = get_type_hints(target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target)
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            require_known("argument", name, parameters, where)
        kind = hints.get(name, Any)
        told = kind.__name__ if inspect.isclass(kind) and not get_args(kind) else kind
        require(fits(value, kind), f"{where}.{name} must be of type {told}, got {value!r}")
    for name, parameter in parameters.items():
        is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        is_there = name in given or name in injected or not is_named or parameter.default is not parameter.empty
        require(is_there, f"{where}.{name} is missing: {target.__name__} needs it")
    return target


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value of a yaml can stand for a parameter of this type.

    Checked are numbers, texts, null, unions, and sequences and mappings of them; True for every other type.

    >>> fits(1, float), fits(True, int), fits(None, int | None), fits(["a", 2], list[str]), fits({}, Mapping)
    (True, False, True, False, True)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (bool, int, float, str, NoneType):
        return type(value) is kind or (kind is float and type(value) is int)
    if inspect.isclass(origin) and issubclass(origin, Mapping) and parts:
        return isinstance(value, Mapping) and all(fits(each, parts[1]) for each in value.values())
    if inspect.isclass(origin) and issubclass(origin, Sequence) and parts:
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and ... not in parts:
            return len(value) == len(parts) and all(map(fits, value, parts))
        return all(fits(each, parts[0]) for each in value)
    return True


def free_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys that may differ when a run is resumed.

    They are the fields of dataclasses whose metadata says so, and what the classes of other nodes name as ``free``.
    """
    if is_dataclass(config):
        for each in fields(config):
            if each.metadata.get("free"):
                yield f"{prefix}{each.name}"
            else:
                yield from free_keys(getattr(config, each.name), f"{prefix}{each.name}.")
    elif isinstance(config, Mapping):
        if "_target_" in config:
            yield from (f"{prefix}{name}" for name in getattr(pkgutil.resolve_name(config["_target_"]), "free", ()))
        for name, part in config.items():
            yield from free_keys(part, f"{prefix}{name}.")


def _inner_nodes(where: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The outermost nodes with a ``_target_`` inside of this one: instantiate would follow them all."""
    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, part in parts:
        path = f"{where}.{name}"
        if isinstance(part, Mapping) and "_target_" in part:
            yield path, part
        else:
            yield from _inner_nodes(path, part)


def _resolve(where: str, path: Any, prefixes: tuple[str, ...]) -> Target:
    hint = f"names must start with one of: {', '.join(prefixes)} (add your own to allowed_targets)"
    if not isinstance(path, str) or not path.startswith(prefixes):
        raise ConfigError(f"{where}: {path!r} is not allowed; {hint}")
    if (today := current_name(path)) != path:
        raise ConfigError(f"{where}: there is no {path} any more; it is called {today} today")
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot find {path} ({error})") from error
    if not callable(found):
        raise ConfigError(f"{where}: {path} is not a class or function")
    if not f"{found.__module__}.".startswith(prefixes):
        raise ConfigError(f"{where}: {path} really is something of {found.__module__}; {hint}")
    return found
