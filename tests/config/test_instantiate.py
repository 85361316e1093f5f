"""What a configuration may name, and with which arguments."""

from dataclasses import dataclass, field
from typing import Mapping, Sequence

import pytest

from tests.composing import config_of
from vidbridge.build import common
from vidbridge.build.common import as_config_errors
from vidbridge.config.instantiate import check, free_keys
from vidbridge.errors import ConfigError

OURS = ("vidbridge.",)


@dataclass(kw_only=True)
class Thing:
    size: int
    rate: float = 1.0
    parts: tuple = ()
    bounds: tuple[float, float] = (0, 1)
    names: Mapping[str, Sequence[str] | None] = field(default_factory=dict)


def free(**anything):
    """Takes whatever it is given."""


@pytest.mark.parametrize(
    "path",
    ["os.system", "subprocess.run", "builtins.eval", "vidbridgeevil.Thing", "vidbridge", "", None, 3]
    # real names of ours that lead elsewhere
    + ["vidbridge.runtime.sweep.subprocess.run", "vidbridge.config.instantiate.instantiate"]
    + ["vidbridge.runtime.launch.os.system"]
    # nothing there, and nothing to call
    + ["vidbridge.tasks.qa.Nope", "vidbridge.nope.Nope", "vidbridge.text.prompts.LETTERS", "vidbridge..x"],
)
def test_what_is_not_a_class_or_function_of_ours_is_refused(path):
    with pytest.raises(ConfigError, match="judge._target_"):
        check("judge", {"_target_": path}, OURS)


def test_a_forbidden_target_deep_inside_is_found():
    inner = {"list": [{"deep": {"_target_": "os.system"}}]}
    with pytest.raises(ConfigError, match="os.system"):
        check("data", {"_target_": "vidbridge.tasks.qa.QA", "rows": inner}, OURS)


def test_a_prefix_of_the_user_is_allowed():
    assert check("data", {"_target_": f"{__name__}.Thing", "size": 3}, (*OURS, "tests.")) is Thing


def test_a_node_without_target_is_refused():
    with pytest.raises(ConfigError, match="needs a _target_"):
        check("data", {"size": 3}, OURS)


@pytest.mark.parametrize(
    "node, message",
    [
        ({"size": 1, "raet": 2}, "Did you mean 'rate'?"),
        ({}, "thing.size is missing"),
        ({"size": "1"}, "thing.size must be of type int"),
        ({"size": True}, "thing.size must be of type int"),
        ({"size": 1, "rate": "fast"}, "thing.rate must be of type float"),
        ({"size": 1, "bounds": [1, 2, 3]}, "thing.bounds must be of type tuple[float, float], got [1, 2, 3]"),
        ({"size": 1, "bounds": "12"}, "thing.bounds must be of type tuple[float, float]"),
        ({"size": 1, "names": {"a": "b"}}, "thing.names must be of type typing.Mapping[str, "),
    ],
)
def test_arguments_are_checked_against_the_signature(node, message):
    with pytest.raises(ConfigError) as error:
        check("thing", {"_target_": f"{__name__}.Thing", **node}, ("tests.",))
    assert message in str(error.value)


def test_what_fits_passes():
    arguments = {"rate": 2, "parts": [1], "bounds": [1, 2.5], "names": {"a": ["b"], "c": None}}
    check("thing", {"_target_": f"{__name__}.Thing", **arguments}, ("tests.",), injected=["size"])
    check("free", {"_target_": f"{__name__}.free", "whatever": 1}, ("tests.",))


@dataclass
class Part:
    place: str = field(default="here", metadata={"free": True})
    size: int = 0


@dataclass
class Whole:
    part: Part = field(default_factory=Part)
    judge: object = None
    number: int = field(default=0, metadata={"free": True})


class Remote:
    free = ("address",)


def test_what_may_differ_is_said_where_the_key_is_defined():
    """By the metadata of a dataclass, by ``free`` of a class that a node names, however deep."""
    judge = {"_target_": f"{__name__}.free", "answers": {"_target_": f"{__name__}.Remote", "model": "m"}}
    assert list(free_keys(Whole(judge=judge))) == ["part.place", "judge.answers.address", "number"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["+judge.answers.modle=x"], "judge.answers: there is no argument 'modle'. Did you mean 'model'?"),
        (["judge.answers.timeout_s=soon"], "judge.answers.timeout_s must be of type float"),
        (["judge.answers.base_url=nowhere"], "base_url must be"),
        (["judge.answers.api_key_env=VIDBRIDGE_NOT_SET"], "VIDBRIDGE_NOT_SET, which is not set"),
        (["judge.window=0"], "judge.window must be positive"),
        (["judge.cache.path=/dev/null/judge.sqlite"], "judge.cache.path: cannot use /dev/null/judge.sqlite"),
    ],
)
def test_a_mistake_inside_the_judge_is_named(overrides, message, tmp_path):
    with pytest.raises(ConfigError) as error, as_config_errors():
        common.build_judge(config_of("judge=openai", f"paths.cache='{tmp_path}'", *overrides))
    assert message in str(error.value)


def test_both_roles_are_built_from_one_yaml(tmp_path):
    judge = common.build_judge(config_of("judge=openai_two", f"paths.cache='{tmp_path}'", "judge.answers.model=one"))
    assert [judge.models[kind].model for kind in ("grade", "extract")] == ["one", "Qwen/Qwen2.5-14B-Instruct"]
    assert judge.models["verdict"].base_url == judge.models["entail"].base_url == "http://127.0.0.1:8000/v1"
