"""A rollout that dies or hangs on the second rank, so that something happens at a moment that can be chosen.

VIDBRIDGE_FAULT="exit 12 FILE" is os._exit in the 12th call of ``generate``, "hang 12 FILE" sleeps there for ever; FILE
appears at that moment. Without it this is the ordinary rollout.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from vidbridge.policy.policy import Policy
from vidbridge.rollout.shared_prefix import SharedPrefixConfig, SharedPrefixRollout

_calls = count(1)  # of all instances: evaluation has its own


@dataclass(frozen=True, kw_only=True)
class FaultyConfig(SharedPrefixConfig):
    def build(self, policy: Policy) -> FaultyRollout:
        return FaultyRollout(policy, max_rows=self.max_rows)


class FaultyRollout(SharedPrefixRollout):
    def generate(self, *arguments: Any, **named: Any) -> Any:
        kind, at, mark = os.environ.get("VIDBRIDGE_FAULT", "none 0 -").split(" ", 2)
        if os.environ["RANK"] == "1" and next(_calls) == int(at):
            Path(mark).touch()
            if kind == "exit":
                os._exit(7)
            time.sleep(10**6)
        return super().generate(*arguments, **named)
