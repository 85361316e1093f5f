"""Configurations that were recorded before classes moved."""

import pkgutil

import pytest

from vidbridge.config.instantiate import check
from vidbridge.config.renamed import MOVED, RENAMED, current_name, with_current_names
from vidbridge.errors import CheckpointError, ConfigError
from vidbridge.runtime.checkpoint import check_same, fingerprint


def test_every_module_of_before_leads_to_one_of_today():
    assert all(pkgutil.resolve_name(today) and today not in MOVED for today in MOVED.values())
    for then in MOVED:
        with pytest.raises((ImportError, AttributeError)):
            pkgutil.resolve_name(then)


def test_every_name_of_before_leads_to_one_of_today():
    assert all(pkgutil.resolve_name(today) for today in RENAMED.values())
    assert current_name("vidbridge.policy.engine_local.LocalEngine") == "vidbridge.policy.engines.local.LocalConfig"


def test_a_recorded_configuration_is_read_with_the_names_of_today():
    record = {"judge": {"_target_": "vidbridge.judges.model.ModelJudge", "n": [{"_target_": "mine.A"}]}, "seed": 3}
    assert with_current_names(record) == {
        "judge": {"_target_": "vidbridge.judges.llm_judge.ModelJudge", "n": [{"_target_": "mine.A"}]},
        "seed": 3,
    }


def test_a_run_of_before_is_gone_on_with(tmp_path):
    then = {"data": {"_target_": "vidbridge.data.raw.Raw", "root": "a"}}
    now = {"data": {"_target_": "vidbridge.data.formats.annotated_videos.Raw", "root": "a"}}
    check_same(then, now, tmp_path, free=())
    assert fingerprint(then, free=()) == fingerprint(now, free=())
    with pytest.raises(CheckpointError, match="data.root: a -> b"):
        check_same(then, {"data": {**now["data"], "root": "b"}}, tmp_path, free=())


def test_a_yaml_with_a_name_of_before_is_told_the_one_of_today():
    with pytest.raises(ConfigError, match="it is called vidbridge.rewards.rules.Format today"):
        check("reward", {"_target_": "vidbridge.rewards.format.Format"}, ("vidbridge.",))
