"""items.jsonl: what every held-out item earned, one line an item: what intervals and paired comparisons are made of.

    {"when": "after", "kind": "greedy", "uid": "caption/test/0", "task": "caption", "source": "..0.mp4",
     "totals": [1.65], "gates": {"format": [1.0]}, "terms": {"event_recall": [1.0], ..}}
"""

from __future__ import annotations

from typing import Any

from vidbridge.types import Group

ITEMS = "items.jsonl"


def item_row(group: Group) -> dict[str, Any]:
    """One scored item; lists run over its completions. ``source`` is the video that it was made from."""
    sample, rewards = group.sample, group.rewards
    return {
        "uid": sample.uid,
        "task": sample.task,
        "source": sample.meta["sources"][0] if "sources" in sample.meta else sample.videos[0].path,
        "totals": [reward.total for reward in rewards],
        "gates": {name: [reward.gates[name] for reward in rewards] for name in rewards[0].gates},
        "terms": {name: [reward.terms[name] for reward in rewards] for name in rewards[0].terms},
    }
