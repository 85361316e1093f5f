"""The benchmark of engines runs and writes what it promises."""

import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not in this environment: make test-vllm")

from experiments.bench import engines  # noqa: E402


def test_engines(tmp_path):
    path = tmp_path / "figures.json"
    engines.main(["--quick", "--repeats", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["engine"], row["prompts"]) for row in rows] == [("ours", 1), ("vllm", 1), ("ours", 2), ("vllm", 2)]
    for row in rows:
        assert row["group_size"] == 8 and row["tokens_per_s"] > 0 and row["sync_s"] >= 0
        assert row["logprob_gap"] < 1e-4 and row["tokens_per_s"] == row["prompts"] * 8 * 4 / row["seconds"]
