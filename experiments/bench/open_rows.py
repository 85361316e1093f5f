"""Open a JSONL file as data=vidbridge_r1 does and say what that took: ``python -m experiments.bench.open_rows FILE``.

A program of its own, so that the memory is that of opening the file, and not of torch.
"""

import json
import sys
import time

from vidbridge.data.formats.released_jsonl import VidbridgeR1
from vidbridge.media.worker import peak_mb
from vidbridge.tasks.caption import Caption

if __name__ == "__main__":
    started = time.perf_counter()
    rows = VidbridgeR1(root=".", files={"train": sys.argv[1]}).rows(Caption(), "train")
    assert rows[len(rows) // 2].problem_type == "caption"
    figures = {"rows": len(rows), "seconds": time.perf_counter() - started, "peak_mb": peak_mb()}
    print(json.dumps(figures))
