"""What documents promise: metrics are explained, paths that are named are there, commands that are shown can be run."""

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import build_data
from tests.composing import composed, evaluation
from vidbridge.runtime import launch

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


# -- commands ---------------------------------------------------------------------------------------------------------

FENCED = re.compile(r"```\n(.*?)```", re.S)
INLINE = re.compile(r"`((?:python|make|bash|torchrun) [^`\n]+)`")
SAMPLE = "x"  # stands where a reader puts something of their own


def commands_of(document):
    """The words of each command in a document: placeholders filled, ellipses and comments left out."""
    text = document.read_text()
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    variables = dict(re.findall(r'^(\w+)="(.*)"$', blocks, re.M))
    for line in [*blocks.splitlines(), *INLINE.findall(text)]:
        for part in re.sub(r"<[^<>]+>", SAMPLE, line.replace("<name>", "harness")).split(" & "):
            if part.startswith(("python ", "make ", "bash ", "torchrun ")):
                words = []
                for word in shlex.split(part, comments=True):
                    words += variables[word[1:]].split() if word.startswith("$") else [word]
                yield [word for word in words if word not in ("..", "...")]


def overrides_of(words):
    """What Hydra is told; of a sweep its first job, and nothing that an extra package or the reader has to bring."""
    sweep = any(word in ("-m", "--multirun") for word in words)
    kept = [word for word in words if not word.startswith(("-", "hydra/launcher", "[")) and ("=" in word)]
    return [word.split(",")[0] if sweep else word for word in kept if not re.search(r"=(\.\.|mine)$", word)]


def check_command(words):
    """AssertionError or ConfigError where a reader of the command would be told that it is wrong."""
    program, *rest = words
    if program == "torchrun":
        program, rest = "python", rest[rest.index("train.py") :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert rest[0] in targets, rest[0]
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif rest[0] == "train.py":
        launch.to_dataclasses(composed(*overrides_of(rest)))
    elif rest[0] in ("evaluate.py", "build_data.py"):
        if rest[0] == "build_data.py":
            build_data.parser().parse_args([word for word in rest[1:] if "=" not in word])
        launch.to_dataclasses(evaluation(*overrides_of(rest)))
    elif rest[0] == "-m":
        module = importlib.util.find_spec(rest[1])
        assert module is not None, rest[1]
        if rest[1] == "vidbridge.check_model":
            launch.to_dataclasses(composed(*overrides_of(rest[2:])))
            return
        source = Path(module.origin).with_name("__main__.py") if module.submodule_search_locations else module.origin
        told = Path(source).read_text()
        if "experiments.bench.harness" in told:
            told += (ROOT / "experiments" / "bench" / "harness.py").read_text()
        unknown = [word for word in rest[2:] if word.startswith("--") and f'"{word}"' not in told]
        assert not unknown, unknown
    else:
        raise AssertionError(f"nobody knows what {words} is")


COMMANDS = sorted({(path.name, *words) for path in DOCUMENTS for words in commands_of(path)})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:100])
def test_every_command_that_is_shown_is_one(command):
    check_command(command[1:])


def test_the_script_of_the_paper_says_what_can_be_run():
    told = subprocess.run(
        ["bash", "experiments/vidbridge_7b.sh"], cwd=ROOT, env={**os.environ, "DRY_RUN": "1"}, check=True, text=True,
        capture_output=True,
    ).stdout  # fmt: skip
    commands = [shlex.split(line.removeprefix("+ ")) for line in told.splitlines()]
    assert len(commands) == 7 + 2 * 8  # and what is evaluated: two models on eight benchmarks
    for _, *words in commands:
        check_command(["python", *words])
