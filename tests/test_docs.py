"""What documents promise: every metric of the code is explained, every path that is named is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = "reward rollout policy held_out val judge advantage gradient entropy sft data time".split()
KEY = re.compile(rf'f?"((?:{"|".join(STAGES)})/[a-z0-9_{{}}./]+)"')
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def told():
    """A pattern for each key of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    keys = [key for line in text.splitlines() if line.startswith("| `") for key in re.findall(r"`([^`]+/[^`]+)`", line)]
    return [re.compile(re.sub(r"<\w+>", r"[^/]+", key)) for key in keys]


def test_every_metric_in_the_code_is_explained():
    patterns, found = told(), set()
    for path in (ROOT / "vidbridge").rglob("*.py"):
        for key in KEY.findall(path.read_text()):
            if not key.endswith(("/", "_")) and key.split("/")[0] not in ("held_out", "val"):  # these are joined
                found.add(re.sub(r"\{[^}]*\}", "x", key))
    missing = sorted(key for key in found if not any(pattern.fullmatch(key) for pattern in patterns))
    assert len(found) > 30 and not missing, missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(document):
    named = re.findall(r"\b((?:vidbridge|tests|experiments|docs)/[\w./]+\.(?:py|md|sh|png))\b", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
