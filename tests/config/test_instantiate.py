"""What a configuration may name, and with which arguments."""

from dataclasses import dataclass

import pytest

from tests.composing import config_of
from vidbridge.build import common
from vidbridge.build.common import as_config_errors
from vidbridge.config.instantiate import check_arguments, check_targets
from vidbridge.errors import ConfigError

OURS = ("vidbridge.",)


@dataclass(kw_only=True)
class Thing:
    size: int
    rate: float = 1.0
    parts: tuple = ()


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
        check_targets("judge", {"_target_": path}, OURS)


def test_a_forbidden_target_deep_inside_is_found():
    inner = {"list": [{"deep": {"_target_": "os.system"}}]}
    with pytest.raises(ConfigError, match="os.system"):
        check_targets("data", {"_target_": "vidbridge.tasks.qa.QA", "rows": inner}, OURS)


def test_a_prefix_of_the_user_is_allowed():
    assert check_targets("data", {"_target_": f"{__name__}.Thing"}, (*OURS, "tests.")) is Thing


def test_a_node_without_target_is_refused():
    with pytest.raises(ConfigError, match="needs a _target_"):
        check_targets("data", {"size": 3}, OURS)


@pytest.mark.parametrize(
    "node, message",
    [
        ({"size": 1, "raet": 2}, "Did you mean 'rate'?"),
        ({}, "thing.size is missing"),
        ({"size": "1"}, "thing.size must be of type int"),
        ({"size": True}, "thing.size must be of type int"),
        ({"size": 1, "rate": "fast"}, "thing.rate must be of type float"),
    ],
)
def test_arguments_are_checked_against_the_signature(node, message):
    with pytest.raises(ConfigError) as error:
        check_arguments("thing", Thing, node, {})
    assert message in str(error.value)


def test_what_fits_passes():
    check_arguments("thing", Thing, {"_target_": "x", "rate": 2, "parts": [1]}, {"size": 3})
    check_arguments("free", free, {"whatever": 1}, {})


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
