"""What a configuration must not say: ConfigError, and the checks that raise it, in the words of the user's keys."""

from __future__ import annotations

import difflib
import math
from typing import Any, Dict, Iterable, Mapping
from urllib.parse import urlsplit

from vidbridge.errors import ConfigError

REWARD_PARTS = ("name", "gates", "terms")  # every other key of a reward node is a task with its weights


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_positive(where: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        key = f"{where}.{name}" if where else name
        require(0 < value < math.inf, f"{key} must be positive and finite, got {value}")


def require_known(kind: str, name: str, known: Iterable[str], where: str) -> None:
    """ConfigError unless `name` is one of `known`, with the nearest spelling and the whole list."""
    known = list(dict.fromkeys(known))
    if name not in known:
        raise ConfigError(f"{where}: there is no {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")


def is_http(text: Any) -> bool:
    """Return whether this is the address of a server, without a password.

    >>> is_http("http://gpu7:8000/v1"), is_http("gpu7:8000"), is_http("http://me:secret@gpu7"), is_http("http://a:0")
    (True, False, False, False)
    """
    try:
        parts = urlsplit(text)
        is_place = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
        return parts.scheme in ("http", "https") and is_place
    except (ValueError, TypeError, AttributeError):  # a port that is no number, no text at all
        return False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    >>> did_you_mean("captoin", ["qa", "caption"])
    " Did you mean 'caption'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def reward_weights(reward: Mapping[str, Any]) -> Dict[str, Dict[str, float]]:
    """The blocks of a reward node that are weights by task.

    >>> reward_weights({"name": "x", "gates": {}, "terms": {"choice": {}}, "qa": {"choice": 1.0}})
    {'qa': {'choice': 1.0}}
    """
    return {key: value for key, value in reward.items() if key not in REWARD_PARTS}


def check_shares(where: str, shares: Dict[str, float]) -> None:
    """Refuse shares of tasks that are negative, not finite, or all 0; which tasks there are is checked by Config."""
    require(any(shares.values()), f"{where} must give at least one task a share above 0")
    for task, share in shares.items():
        require(0 <= share < math.inf, f"{where}.{task} must not be negative, got {share}")


def check_reward(where: str, reward: Dict[str, Any]) -> None:
    """Refuse a reward node that is not gates, terms, and numbers by task and term; tasks are checked by Config."""
    for part in ("gates", "terms"):
        require(isinstance(reward.get(part), dict), f"{where}.{part} must name its rewards, each with a _target_")
    gates, terms = ([name for name in reward[part] if reward[part][name] is not None] for part in ("gates", "terms"))
    for name in gates:  # null takes one out
        require(name not in terms, f"{where}: '{name}' is both a gate and a term; give one of them another name")
    for task, weights in reward_weights(reward).items():
        require(isinstance(weights, dict), f"{where}.{task} must be weights by term, got {weights!r}")
        for term, weight in weights.items():
            require_known("term", term, terms, f"{where}.{task}")
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
            require(is_number, f"{where}.{task}.{term} must be a finite number, got {weight!r}")


def check_covered(where: str, reward: Dict[str, Any], scored: Iterable[str]) -> None:
    """Every task that will be ``scored`` has weights in a reward."""
    for task in scored:
        require(task in reward, f"{where} has no weights for the task '{task}'; add {where}.{task}.<term>")
