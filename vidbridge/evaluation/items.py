"""items.jsonl: every held-out item as it is done, one line an item: what intervals and paired comparisons are made of.

    {"when": "after", "kind": "greedy", "uid": "caption/test/0", "task": "caption", "source": "..0.mp4",
     "reference": "First ..", "completions": ["<think>.."], "well_formed": [true],
     "totals": [1.65], "gates": {"format": [1.0]}, "terms": {"event_recall": [1.0], ..}}
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from vidbridge.text.tags import read_tags
from vidbridge.types import Group


def item_row(group: Group) -> dict[str, Any]:
    """One item; lists run over its completions. ``source`` is the video that it was made from.

    What could not be scored has the total nan; of a group in which that is all there are no gates and no terms.
    """
    sample, rewards = group.sample, group.rewards
    return {
        "uid": sample.uid,
        "task": sample.task,
        "source": sample.meta["sources"][0] if "sources" in sample.meta else sample.shown[0].path,
        **({"categories": sample.meta["categories"]} if "categories" in sample.meta else {}),
        "reference": sample.answer,
        "completions": [done.text for done in group.completions],
        "well_formed": [read_tags(done.text) is not None for done in group.completions],
        "totals": [reward.total for reward in rewards],
        "gates": {name: [reward.gates[name] for reward in rewards] for name in rewards[0].gates},
        "terms": {name: [reward.terms[name] for reward in rewards] for name in rewards[0].terms},
    }


def is_scored(row: Mapping[str, Any]) -> bool:
    """Return whether at least one of its completions is scored."""
    return not np.isnan(np.array(row["totals"], float)).all()


def earned(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return what each completion of an item earned, [samples]: its "total", and each term times the gates.

    nan where it was not scored, which in the file is null; behind a closed gate everything is 0.
    """
    gate = np.prod([np.array(values, float) for values in row["gates"].values()], axis=0)
    terms = {name: np.where(gate == 0, 0.0, gate * np.array(values, float)) for name, values in row["terms"].items()}
    return {"total": np.array(row["totals"], float), **terms}
