"""Every yaml composes, and every kind of mistake is refused with a message that helps."""

import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.composing import composed, config_of, evaluation
from vidbridge.algo.advantages import SCALES, group_advantages
from vidbridge.algo.objectives import OBJECTIVES
from vidbridge.algo.token_weights import token_weights
from vidbridge.config.checks import did_you_mean
from vidbridge.config.choices import WandbMode
from vidbridge.config.schema import GrpoConfig, TrackConfig
from vidbridge.errors import ConfigError
from vidbridge.memory_plan.model_size import ModelSize
from vidbridge.memory_plan.stand_in import config_of as config_of_shape
from vidbridge.runtime import launch

CHOICES = sorted(
    (path.parent.relative_to(launch.CONF).as_posix(), path.stem)
    for path in launch.CONF.rglob("*.yaml")
    if path.parent != launch.CONF and path.parent.name not in ("task", "local") and not path.stem.startswith("_")
    and "hydra" not in path.relative_to(launch.CONF).parts  # of Hydra itself
)
CHOSEN_BY = {  # the groups in the defaults lists of both doors
    door: {str(group) for entry in OmegaConf.load(launch.CONF / f"{door}.yaml").defaults for group in entry}
    for door in ("config", "evaluate")
}
TASKS = ["qa", "caption", "dark_event_infer", "mix_vid_qa"]


@pytest.mark.parametrize("group, name", CHOICES)
def test_every_yaml_makes_a_valid_configuration(group, name):
    """Of train.py, or of evaluate.py, or of both."""
    doors = [door for door in ("config", "evaluate") if group in CHOSEN_BY[door]]
    assert doors
    for door in doors:
        launch.to_dataclasses(composed(f"{group}={name}", config_name=door))


def test_sweeps_can_go_to_a_cluster():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    launch.register()
    with initialize_config_dir(str(launch.CONF), version_base="1.3"):
        cfg = compose("config", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert cfg.hydra.launcher.tasks_per_node == 1 and "SlurmLauncher" in cfg.hydra.launcher._target_


def test_the_default_is_the_method():
    config = config_of()
    shares = config.task_mix.shares
    assert list(config.tasks) == TASKS
    # 2003 + 4624 + 1841 + 2332 = 10800 rows: 18.5 %, 42.8 %, 17.0 %, 21.6 %
    assert [round(shares[task] / sum(shares.values()), 3) for task in TASKS] == [0.185, 0.428, 0.17, 0.216]
    assert config.reward == config.eval.reward
    assert config.algo == GrpoConfig()  # the paper's settings are the defaults of the dataclass too


def test_an_ablation_of_the_reward_is_evaluated_by_the_whole_reward_on_all_tasks():
    config = config_of("reward=no_gate", "task_mix=qa")
    assert config.reward["gates"] == {"format": None}
    assert config.eval.reward == config_of().eval.reward
    assert list(config.tasks) == TASKS


@pytest.mark.parametrize(
    "name, advantage, weights, loss",
    [
        # deviation of (1, 0): sqrt(0.5), and 1e-4; tokens 2 and 4 of two rows; 1.25 is cut at 1.2
        ("grpo", 0.5 / (0.5**0.5 + 1e-4), [1 / 4, 1 / 8], -1.2),
        ("dr_grpo", 0.5, [1 / 16, 1 / 16], -1.2),  # no deviation; 8 tokens allowed
        ("dapo", 0.5 / (0.5**0.5 + 1e-4), [1 / 6, 1 / 6], -1.25),  # six tokens; clip-higher
        ("gspo", 0.5 / (0.5**0.5 + 1e-4), [1 / 4, 1 / 8], -1.0004),  # one ratio a completion, cut tightly
    ],
)
def test_algorithms_do_what_they_are_named_for(name, advantage, weights, loss):
    """Completions of 2 and 4 tokens that earn 1 and 0; the tokens of the first have become 1.25 times as likely."""
    algo = config_of(f"algo={name}").algo
    assert group_advantages(torch.tensor([[1.0, 0.0]]), SCALES[algo.advantage_scale])[0, 0] == pytest.approx(advantage)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    assert token_weights(mask, algo.loss_norm, 8)[:, 0].tolist() == pytest.approx(weights)
    losses = OBJECTIVES[algo.objective](
        torch.tensor([[1.25, 1.25, 1.0, 1.0], [1.0] * 4]).log(),
        old_logprobs=torch.zeros(2, 4),
        advantages=torch.tensor([1.0, -1.0]),
        loss_mask=mask,
        clip_low=algo.clip_low,
        clip_high=algo.clip_high,
    ).losses
    assert losses[0, :2].tolist() == pytest.approx([loss, loss])


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "task_mix"])
def test_a_pass_has_as_many_rows_as_in_the_paper(name):
    mix = config_of(f"task_mix={name}").task_mix
    rows = 10800 if name == "naive_matched" else sum(mix.shares.values())  # 2003 + 4624 for naive: 0.6136 of all
    assert mix.size_frac == pytest.approx(rows / 10800, abs=1e-4)


RELEASED = {f"qwen2_5_vl_{size}b": (f"Qwen/Qwen2.5-VL-{size}B-Instruct", 28) for size in (3, 7, 32, 72)}
RELEASED |= {f"qwen3_vl_{size}b": (f"Qwen/Qwen3-VL-{size}B-Instruct", 32) for size in (2, 4, 8, 32)}
RELEASED |= {f"qwen3_5_{size}b": (f"Qwen/Qwen3.5-{size}B", 32) for size in (9, 27)}
RELEASED["qwen3_vl_30b_a3b"] = ("Qwen/Qwen3-VL-30B-A3B-Instruct", 32)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_brings_settings_that_fit_each_other_and_the_paper(name):
    path, side = RELEASED[name]  # of a merged patch, in pixels
    config = config_of(f"model={name}")
    assert config.model.path == path and config.prompt.name == "qwen" and config.model.name == name
    assert side == config.model.shape.vision["patch_size"] * config.model.shape.vision["spatial_merge_size"]
    frames = config.frames  # 16 frames of 128 to 196 merged patches
    assert (frames.max_frames, frames.min_pixels, frames.max_pixels) == (16, 128 * side**2, 196 * side**2)
    assert frames.max_frames // 2 * 196 < config.model.max_prompt_tokens
    # a group of the longest completions is packed in one row, and decoded together
    completions = 8 * config.rollout.max_completion_tokens
    assert completions <= config.engine.max_packed_tokens and 8 <= config.rollout.max_rows
    assert config.prompts_per_step * config.algo.group_size == 256


WEIGHTS = {  # in billions, as their model cards say
    "qwen2_5_vl_3b": 3.75, "qwen2_5_vl_7b": 8.29, "qwen3_vl_2b": 2.13, "qwen3_vl_4b": 4.44, "qwen3_vl_8b": 8.77,
    "qwen3_vl_30b_a3b": 31.07,
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_released_shape_has_as_many_weights_as_the_model(name):
    model = config_of(f"model={name}").model
    size = ModelSize.of(config_of_shape(model.shape), model)
    assert size.weights / 1e9 == pytest.approx(WEIGHTS[name], abs=0.01)
    if name == "qwen3_vl_30b_a3b":  # 8 of 128 experts: 3 billion, with the vocabulary
        assert (size.active_in_text + size.in_vocabulary) / 1e9 == pytest.approx(3.0, abs=0.1)


def test_the_command_line_and_debug_come_after_the_model():
    plain, said = config_of("model=qwen2_5_vl_7b"), config_of("model=qwen2_5_vl_7b", "optim.lr=1e-5", "debug=smoke")
    assert plain.optim.lr < config_of().optim.lr / 100 and said.optim.lr == 1e-5
    assert said.prompts_per_step < plain.prompts_per_step and said.rollout == plain.rollout


@pytest.mark.parametrize("size", ["7b", "3b"])
def test_the_large_experiments_are_the_papers(size):
    """On-policy, no KL, one pass over 10,800 rows in batches of 32: 337.5, so 338 steps."""
    config = config_of(f"experiment=vidbridge_{size}")
    assert config.model.name == f"qwen2_5_vl_{size}" and config.model.frozen == []
    assert (config.algo.ppo_epochs, config.algo.kl_beta, config.rollout.temperature) == (1, 0, 1)
    assert config.steps is None and config.task_mix.size_frac == 1
    assert math.ceil(sum(config.task_mix.shares.values()) / config.prompts_per_step) == 338


def test_what_evaluate_leaves_out_is_what_the_yamls_say_about_training():
    """A model's yaml has a learning rate, a task's a weight to train with, debug=.. a number of steps."""
    cfg = evaluation("model=qwen2_5_vl_7b", "+task=temporal_order", "debug=overfit")
    config, record = launch.to_dataclasses(cfg), launch.public(cfg)
    assert {"optim", "engine", "prompts_per_step", "reward", "steps"} <= set(cfg) - set(record)
    assert (config.rollout.max_completion_tokens, config.frames.max_frames) == (2048, 16)
    assert config.eval.reward["temporal_order"] == {"verdict": 1.0} and config.train_rows == 2


def test_tasks_can_be_left_out():
    config = config_of("task=[qa]", "task_mix=qa")
    assert list(config.tasks) == ["qa"] and "caption" in config.reward


def test_a_value_can_be_overridden_deep_inside():
    config = config_of("reward.caption.event_precision=0.25", "track=none", "frames.fps=null")
    assert config.reward["caption"]["event_precision"] == 0.25
    assert config.eval.reward["caption"]["event_precision"] == 0.5
    assert config.track.wandb is WandbMode.off
    assert config.frames.fps is None


MISTAKES = {
    "reward.captoin.wording=1": ["reward.captoin", "Did you mean 'caption'?"],
    "rollout.max_row=3": ["rollout.max_row", "Did you mean 'max_rows'?"],
    "+rollout.max_row=3": ["rollout: there is no argument 'max_row'. Did you mean 'max_rows'?"],
    "rollout.max_rows=few": ["rollout.max_rows must be of type int, got 'few'"],
    "rollout.max_rows=0": ["rollout.max_rows must be positive"],
    "rollout.top_p=1.5": ["rollout.top_p must lie in (0, 1]"],
    "rollout.top_p=0.9": ["rollout.top_p=0.9 samples from a part", "algo.correction=token_truncation"],
    "rollout.min_p=0.1": ["rollout.min_p=0.1 samples from a part", "rollout.min_p=0"],
    "rollout=vllm rollout.temperature=2.5": ["rollout.temperature=2.5: vLLM takes no more than 2"],
    "rollout=vllm rollout.cache_gb=0": ["rollout.cache_gb must be positive"],
    "algo.correction=tis": ["algo.correction: there is no function 'tis'", "token_truncation"],
    "algo.correction_cap=0.5": ["algo.correction_cap must be at least 1"],
    "algo.max_logprob_gap=0": ["algo.max_logprob_gap must be positive"],
    "~rollout.max_completion_tokens": ["rollout.max_completion_tokens is missing: SharedPrefixConfig needs it"],
    "rollout._target_=vidbridge.tasks.qa.QA": ["rollout: there is no argument"],
    "engine.stage=3": ["engine.stage", "no such key"],
    "+engine.stage=3": ["engine: there is no argument 'stage'"],
    "engine=zero2 engine.stage=4": ["engine.stage must be 2, or 3"],
    "engine.max_packed_tokens=0": ["engine.max_packed_tokens must be positive"],
    "+data.rot=x": ["data: there is no argument 'rot'. Did you mean 'root'?"],
    "data.num_rows={train: many}": ["data.num_rows must be of type", "'many'"],
    "judge=openai +judge.answers.modle=x": ["judge.answers: there is no argument 'modle'. Did you mean 'model'?"],
    "judge=openai judge.answers.timeout_s=soon": ["judge.answers.timeout_s must be of type float"],
    "judge._target_=os.system": ["judge._target_: 'os.system' is not allowed"],
    "+tasks.quiz._target_=vidbridge.tasks.qa.QA +reward.quiz.choice=1 +eval.reward.quiz.choice=1": [
        "tasks.quiz builds the task 'qa': call the key and the task the same"
    ],
    "tasks.mix_vid_qa.piece_s=2": ["tasks.mix_vid_qa.piece_s must be of type tuple[float, float], got 2"],
    "reward.terms.event_precision.lenient=1": ["reward.terms.event_precision.lenient must be of type bool, got 1"],
    "+reward.terms.format={_target_: vidbridge.rewards.rules.Format}": ["'format' is both a gate and a term"],
    "+reward.captoin.wording=1": ["no task 'captoin'", "Did you mean 'caption'?"],
    "reward.qa.choice=often": ["reward.qa.choice must be a finite number", "often"],
    "reward.qa.choice=nan": ["reward.qa.choice must be a finite number"],
    "+reward.qa.chioce=1": ["reward.qa: there is no term 'chioce'. Did you mean 'choice'?"],
    "+eval.reward.qa.chioce=1": ["eval.reward.qa: there is no term 'chioce'"],
    "reward=no_gate +reward.qa.format=1": ["there is no term 'format'"],  # a gate, and taken out
    "model.pth=x": ["model.pth", "Did you mean 'path'?"],
    "+model.pth=x": ["no key 'pth'", "Did you mean 'path'?"],
    "+nonsense=1": ["no key 'nonsense'"],
    "optim.lr=abc": ["optim.lr", "abc", "Float"],
    "optim.lr=0": ["optim.lr must be positive"],
    "optim.betas=[0.9]": ["optim.betas"],
    "algo.loss_norm=foo": ["algo.loss_norm", "token, sequence, constant"],
    "algo.group_size=1": ["algo.group_size must be at least 2"],
    "algo.clip_high=inf": ["algo.clip_high must be positive and finite"],
    "track.completions_groups=-1": ["track.completions_groups"],
    f"track.tags=[ok,{'x' * 65}]": ["track.tags: W&B takes tags of 1 to 64 characters, got 65"],
    "track.tags=['']": ["track.tags: W&B takes tags of 1 to 64 characters, got 0"],
    f"track.group={'x' * 129}": ["track.group: W&B takes 1 to 128 characters, got 129"],
    f"track.project={'x' * 129}": ["track.project: W&B takes 1 to 128 characters, got 129"],
    "track.project='a/b'": ["track.project: W&B takes no / in it"],
    "steps=0": ["steps must be positive or null"],
    "seed=-1": ["seed must not be negative"],
    "task_mix.size_frac=0": ["task_mix.size_frac must be positive"],
    "model=qwen": ["no 'qwen'", "Known: qwen2_5_vl_32b"],
    "hydra.run.dir=/dev/null/run": ["hydra.run.dir", "Not a directory"],
    "algo=grpoo": ["no 'grpoo'", "Did you mean 'grpo'?"],
    "task_mix=nope": ["no 'nope'", "naive_matched"],
    "task_mix.shares.qa=-1": ["task_mix.shares.qa must not be negative"],
    "+task_mix.shares.poetry=1": ["no task 'poetry'"],
    "task_mix=qa task_mix.shares.qa=0": ["at least one task a share above 0"],
    "task=[qa,caption]": ["task_mix.shares: there is no task 'dark_event_infer'"],
    "algo=sft algo.stages=[{steps: 1, shares: {qa: 0}}]": ["algo.stages[0].shares must give at least one task"],
    "algo=sft algo.stages=[{steps: 200, shares: {captoin: 1}}]": ["algo.stages[0].shares: there is no task 'captoin'"],
    "algo=sft steps=100000": ["steps=100000", "end after 1000"],
    "model.path=${oc.env:VIDBRIDGE_NOT_SET}": ["model.path", "VIDBRIDGE_NOT_SET"],
    "seed=[": ["'['"],
}


@pytest.fixture
def launched(monkeypatch, tmp_path, capsys):
    """Run launch.main with these arguments and a body; returns exit status and stderr."""

    def launch_with(body, *arguments, **settings):
        monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}/run", *arguments])
        with pytest.raises(SystemExit) as end:
            launch.main(body, **settings)
        del os.environ["HYDRA_FULL_ERROR"]  # set by launch.main for the rest of its process
        return end.value.code, capsys.readouterr().err

    return launch_with


def must_not_run(config, public, run_dir):
    raise AssertionError("this configuration should have been refused")


def refused_by_us(**track):
    try:
        TrackConfig(**track)
    except ConfigError:
        return True
    return False


def refused_by_wandb(**settings):
    try:
        wandb.Settings(**settings)
    except (ValueError, wandb.errors.UsageError):
        return True
    return False


@pytest.mark.parametrize("length", [0, 1, 64, 65, 128, 129])
def test_tags_and_projects_are_refused_where_the_installed_wandb_does_it(length):
    """An empty project it takes in silence, and names another."""
    name = "x" * length
    assert refused_by_us(tags=["ok", name]) == refused_by_wandb(run_tags=["ok", name])
    assert refused_by_us(project=name) == (refused_by_wandb(project=name) or not name)
    assert refused_by_us(group=name) == (length not in range(1, 129))  # its server's limit, which it does not know
    assert not refused_by_us(wandb=WandbMode.off, tags=[name], project=name, group=name)


@pytest.mark.parametrize("letter", "/\\#?%:-_. é'")
def test_letters_of_a_project_are_refused_where_the_installed_wandb_does_it(letter):
    assert refused_by_us(project=f"a{letter}b") == refused_by_wandb(project=f"a{letter}b")


MISTAKES_OF_EVALUATION = {
    "algo=dapo": ["algo=dapo: nothing is trained here, leave it out"],
    "+optim.lr=1": ["+optim.lr=1: nothing is trained here"],
    "checkpoint.every=3": ["checkpoint.every=3: nothing is trained here"],
    "rollout._target_=vidbridge.rollout.base.RolloutConfig": ["rollout: Can't instantiate abstract class"],
    "+nonsense=1": ["no key 'nonsense'"],
    "steps=3": ["steps=3: nothing is trained here"],
    "benchmark.num_item=3": ["benchmark.num_item", "Did you mean 'num_items'?"],
    "benchmark=qa_jsonl +benchmark.data.flie=x": ["benchmark.data: there is no argument 'flie'. Did you mean 'file'?"],
    "benchmark=qa_jsonl benchmark.data.workers=many": ["benchmark.data.workers must be of type int"],
    "benchmark=qa_jsonl ~benchmark.reward.qa": ["benchmark.reward has no weights for the task 'qa'"],
    "+benchmark.tasks.qa._target_=vidbridge.tasks.qa.QA": ["benchmark.data: a benchmark with tasks or a reward"],
    "+judge@agreement.judge=labels agreement.judge.path=3": ["agreement.judge.path must be of type"],
    "+task=temporal_order ~eval.reward.temporal_order": ["eval.reward has no weights for the task 'temporal_order'"],
}


def words(overrides):
    """At the spaces that separate ``key=value``s."""
    return re.split(r" (?=[+~]?[\w.@]+=|~)", overrides)


@pytest.mark.parametrize("door, overrides", [("config", each) for each in MISTAKES]
                         + [("evaluate", each) for each in MISTAKES_OF_EVALUATION])
def test_a_mistake_in_the_configuration_is_one_message_and_status_2(door, overrides, launched):
    status, stderr = launched(must_not_run, *words(overrides), config_name=door)
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("error:") == 1 and "Traceback" not in stderr
    assert len(stderr.splitlines()) <= 3
    for part in {"config": MISTAKES, "evaluate": MISTAKES_OF_EVALUATION}[door][overrides]:
        assert part in stderr


def test_a_secret_from_the_environment_stays_out_of_the_record(monkeypatch):
    monkeypatch.setenv("VIDBRIDGE_CANARY", "canary-5d1e")
    cfg = composed("model.name=${oc.env:VIDBRIDGE_CANARY}", "track.group=by-${model.name}", "seed=7")
    config, record = launch.to_dataclasses(cfg), launch.public(cfg)
    assert config.track.group == "by-canary-5d1e"
    assert record["model"]["name"] == "${oc.env:VIDBRIDGE_CANARY}"
    assert record["track"]["group"] == "by-${oc.env:VIDBRIDGE_CANARY}"
    assert record["seed"] == 7 and "canary-5d1e" not in str(record)
    assert Path(record["data"]["root"]).name == "shapes"  # other interpolations are resolved
    assert launch.to_dataclasses(cfg).track.group == "by-canary-5d1e"  # the resolver is back in place


@pytest.mark.parametrize("wrong, near", [("captoin", "caption"), ("chioce", "choice"), ("xyz", None)])
def test_the_nearest_spelling_is_offered_only_when_it_is_near(wrong, near):
    assert did_you_mean(wrong, ["caption", "choice"]) == (f" Did you mean '{near}'?" if near else "")
