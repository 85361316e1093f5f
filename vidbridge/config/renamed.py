"""What a configuration recorded by a release before this one says otherwise: names of classes, and keys.

Recorded configurations keep the names of their time; they are read as if they had today's.
"""

from __future__ import annotations

from typing import Any, Mapping

# Module of then -> module of today; the classes kept their names.
MOVED = {
    "vidbridge.data.benchmark": "vidbridge.data.formats.benchmark_file",
    "vidbridge.data.raw": "vidbridge.data.formats.annotated_videos",
    "vidbridge.data.shapes": "vidbridge.shapes_world.shapes",
    "vidbridge.data.vidbridge_r1": "vidbridge.data.formats.released_jsonl",
    "vidbridge.judges.cache": "vidbridge.judges.reply_cache",
    "vidbridge.judges.exact": "vidbridge.shapes_world.exact_judge",
    "vidbridge.judges.labels": "vidbridge.judges.recorded",
    "vidbridge.judges.local": "vidbridge.judges.local_chat",
    "vidbridge.judges.model": "vidbridge.judges.llm_judge",
    "vidbridge.judges.openai": "vidbridge.judges.openai_chat",
    "vidbridge.policy.engine_deepspeed": "vidbridge.policy.engines.zero",
    "vidbridge.policy.engine_local": "vidbridge.policy.engines.local",
    "vidbridge.rewards.choice": "vidbridge.rewards.rules",
    "vidbridge.rewards.format": "vidbridge.rewards.rules",
    "vidbridge.rewards.number": "vidbridge.rewards.rules",
    "vidbridge.rewards.telling": "vidbridge.rewards.style",
    "vidbridge.rewards.wording": "vidbridge.rewards.style",
}
# Rollouts and engines were named themselves where their configurations are named today.
RENAMED = {
    "vidbridge.policy.engines.local.LocalEngine": "vidbridge.policy.engines.local.LocalConfig",
    "vidbridge.policy.engines.zero.DeepSpeedEngine": "vidbridge.policy.engines.zero.DeepSpeedConfig",
    "vidbridge.rollout.shared_prefix.SharedPrefixRollout": "vidbridge.rollout.shared_prefix.SharedPrefixConfig",
}
# Keys that runs recorded until evaluate.py had a configuration of its own; training made no use of them.
GONE = ("benchmark", "agreement", "model.checkpoint")

# Keys that came when runs had been recorded without them, with the value that means what was done then.
ADDED = {
    "algo.correction": "none",
    "algo.correction_cap": 2.0,
    "algo.router_aux_coef": 0.0,
    "model.adapter": None,
    "rollout.ahead": 0,
}


def current_name(target: str) -> str:
    """Return the name that the class has today.

    >>> current_name("vidbridge.rewards.format.Format"), current_name("mine.rewards.Format")
    ('vidbridge.rewards.rules.Format', 'mine.rewards.Format')
    """
    module, _, name = target.rpartition(".")
    target = f"{MOVED[module]}.{name}" if module in MOVED else target
    return RENAMED.get(target, target)


def with_current_names(node: Any) -> Any:
    """Return a copy of a configuration, or of a part of it, in which every ``_target_`` has the name of today."""
    if isinstance(node, Mapping):
        return {
            key: current_name(value) if key == "_target_" and isinstance(value, str) else with_current_names(value)
            for key, value in node.items()
        }
    return [with_current_names(part) for part in node] if isinstance(node, list) else node
