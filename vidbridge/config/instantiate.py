"""From a node with a ``_target_`` to the object: what may be named, and which arguments it may be given.

A configuration file is data and may not call what it likes: a name must start with "vidbridge." or a prefix in
``allowed_targets``, and so must the module that the thing named really comes from.
"""

from __future__ import annotations

import inspect
import pkgutil
from dataclasses import is_dataclass
from typing import Any, Callable, Iterator, Mapping, TypeVar, cast, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from vidbridge.config.checks import require_known
from vidbridge.config.renamed import current_name
from vidbridge.config.schema import Config
from vidbridge.errors import ConfigError

T = TypeVar("T")
SCALARS = (bool, int, float, str)
HYDRA_KEYS = ("_target_", "_args_", "_convert_", "_partial_", "_recursive_")


def make(config: Config, where: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """The object that ``node`` describes, once its names have been checked. Nothing else calls Hydra's instantiate.

    ``injected`` are objects a configuration cannot hold; those that the target has no parameter for are left out
    (a reward that asks no judge).
    """
    target = check_targets(where, node, ("vidbridge.", *config.allowed_targets))
    wanted = {name: value for name, value in injected.items() if name in inspect.signature(target).parameters}
    check_arguments(where, target, node, wanted)
    for name, part in node.items():  # a judge's chat models
        if isinstance(part, Mapping) and "_target_" in part:
            check_arguments(f"{where}.{name}", pkgutil.resolve_name(part["_target_"]), part, {})
    try:
        return instantiate(dict(node), **wanted, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error


def function_named(config: Config, where: str, name: str, known: Mapping[str, T]) -> T:
    """Return the function that ``known`` has under ``name``, or the one of that dotted name.

    ConfigError if there is none, or if its module is not in ``allowed_targets``.
    """
    return known[name] if name in known else cast(T, _resolve(where, name, ("vidbridge.", *config.allowed_targets)))


def check_targets(where: str, node: Mapping[str, Any], prefixes: tuple[str, ...]) -> Callable[..., Any]:
    """The class or function that ``node`` names. ConfigError if it, or one nested in it, is not allowed."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{where} needs a _target_: the dotted name of a class")
    return [_resolve(f"{where}._target_", path, prefixes) for path in _targets(node)][0]


def check_arguments(
    where: str, target: Callable[..., Any], node: Mapping[str, Any], injected: Mapping[str, Any]
) -> None:
    """Refuse an argument that does not exist, is missing, or is a text where a number belongs and the like."""
    parameters = inspect.signature(target).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    # a dataclass keeps its own annotations, which know the modules of its bases
    hints = get_type_hints(target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target)
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            require_known("argument", name, parameters, where)
        kind = hints.get(name)
        if kind in SCALARS and not (type(value) is kind or (kind is float and type(value) is int)):
            raise ConfigError(f"{where}.{name} must be of type {kind.__name__}, got {value!r}")
    for name, parameter in parameters.items():
        is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_named and parameter.default is parameter.empty and name not in given and name not in injected:
            raise ConfigError(f"{where}.{name} is missing: {target.__name__} needs it")


def _targets(node: Any) -> Iterator[Any]:
    """The ``_target_`` of a node and of every node inside it: instantiate would follow them all."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for part in node:
            yield from _targets(part)


def _resolve(where: str, path: Any, prefixes: tuple[str, ...]) -> Callable[..., Any]:
    hint = f"names must start with one of: {', '.join(prefixes)} (add your own to allowed_targets)"
    if not isinstance(path, str) or not path.startswith(prefixes):
        raise ConfigError(f"{where}: {path!r} is not allowed; {hint}")
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        moved = "" if (today := current_name(path)) == path else f"; it is called {today} today"
        raise ConfigError(f"{where}: cannot find {path} ({error}){moved}") from error
    if not callable(found):
        raise ConfigError(f"{where}: {path} is not a class or function")
    if not f"{found.__module__}.".startswith(prefixes):
        raise ConfigError(f"{where}: {path} really is something of {found.__module__}; {hint}")
    return found
