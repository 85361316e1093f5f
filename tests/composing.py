"""Compose a configuration in a test the way launch.main does, without a command line."""

from __future__ import annotations

from functools import cache

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidbridge.config.choices import Prompting
from vidbridge.config.prompt import PromptConfig
from vidbridge.config.schema import Config, ShapeConfig
from vidbridge.runtime import launch
from vidbridge.text.prompts import PromptTemplate


def composed(*overrides: str, config_name: str = "config") -> DictConfig:
    launch.register()
    with initialize_config_dir(str(launch.CONF), version_base="1.3"):
        return compose(config_name, list(overrides))


def config_of(*overrides: str) -> Config:
    return launch.to_dataclasses(composed(*overrides))


@cache
def tiny_shape(model: str = "tiny") -> ShapeConfig:
    """Return the numbers of an embedded model."""
    return config_of(f"model={model}").model.shape


def evaluation(*overrides: str) -> DictConfig:
    """Composed as for evaluate.py."""
    return composed(*overrides, config_name="evaluate")


@cache
def _prompt(name: str) -> PromptConfig:
    return config_of(f"prompt={name}").prompt


def templates(prompt: str = "tiny", prompting: Prompting = Prompting.thinking) -> dict[str, PromptTemplate]:
    """By task, those of conf/prompt."""
    chosen = _prompt(prompt)
    return {task: chosen.template(task, prompting) for task in chosen.tasks}


def small_run(model_folder: object, cache: object) -> list[str]:
    """Overrides for a run of seconds on a random model: two rows of each task and split, 16 x 16 pixels."""
    return [*small_evaluation(model_folder, cache), "algo.group_size=2"]


def small_evaluation(model_folder: object, cache: object) -> list[str]:
    """The part of ``small_run`` that is no matter of training."""
    return [
        "debug=smoke",
        f"model.path='{model_folder}'",
        f"paths.cache='{cache}'",
        "data.num_rows={train: 2, val: 2, test: 2}",
        "frames={fps: 1.0, max_frames: 8, min_pixels: 256, max_pixels: 256}",
        "rollout.max_completion_tokens=6",
    ]
