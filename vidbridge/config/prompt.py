"""What conf/prompt may say: the schema of config.py's node ``prompt``, and what makes a text a template."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence

from omegaconf import MISSING

from vidbridge.config.checks import did_you_mean, require, require_known
from vidbridge.config.choices import Prompting
from vidbridge.errors import ConfigError
from vidbridge.text.prompts import PromptTemplate


@dataclass
class SystemMessages:
    thinking: Optional[str] = None  # null: none, where a chat template may add its own; "": an empty one
    direct: Optional[str] = None


@dataclass
class PromptConfig:
    """How tasks are put to the model, in two variants (choices.Prompting): to reason first, and to answer at once."""

    name: str = MISSING
    system: SystemMessages = field(default_factory=SystemMessages)
    # The text after the videos, by task and variant; without "direct" that is the text of "thinking".
    tasks: Dict[str, Any] = field(default_factory=dict)  # OmegaConf 2.3 cannot merge into Dict[str, Dict[str, str]]

    def __post_init__(self) -> None:
        for task, texts in self.tasks.items():
            where = f"prompt.tasks.{task}"
            require(isinstance(texts, dict), f"{where} must have a text by variant, like {where}.thinking")
            for variant, text in texts.items():
                require_known("variant", variant, [each.value for each in Prompting], where)
                require(isinstance(text, str), f"{where}.{variant} must be a text, got {text!r}")

    def template(self, task: str, prompting: Prompting) -> PromptTemplate:
        """Return the words of a task in one variant; ``check`` says whether they are there."""
        texts = self.tasks[task]
        text = texts.get(prompting.value, texts[Prompting.thinking.value])
        return PromptTemplate(text=text, system=getattr(self.system, prompting.value))

    def check(self, task: str, placeholders: Sequence[str]) -> None:
        """ConfigError unless both variants can be made for a task that fills these placeholders."""
        names = " and ".join(f"{{{name}}}" for name in placeholders)
        where = f"prompt.tasks.{task}"
        if "thinking" not in self.tasks.get(task, {}):
            near = "" if task in self.tasks else did_you_mean(task, self.tasks)
            raise ConfigError(f"{where}.thinking is missing: the text that asks '{task}', with {names}.{near}")
        for variant, text in self.tasks[task].items():
            check_template(f"{where}.{variant}", text, placeholders)
        for variant, text in vars(self.system).items():
            check_template(f"prompt.system.{variant}", text or "", ())


def check_template(where: str, text: str, placeholders: Sequence[str]) -> None:
    """ConfigError unless every placeholder, like {question}, stands in ``text``, and no other braces do."""
    known = " and ".join(f"{{{name}}}" for name in placeholders) or "none"
    twice = "a brace that is meant as one is written twice, {{ or }}"
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]  # without the text at the end
    except ValueError as error:
        raise ConfigError(f"{where}: a brace stands alone ({error}); placeholders: {known}; {twice}") from error
    for _, name, form, conversion in parts:
        found = "".join([name or "", f"!{conversion}" if conversion else "", f":{form}" if form else ""])
        near = did_you_mean(name or "", placeholders)
        require(found in placeholders, f"{where}: {{{found}}} is no placeholder.{near} Known: {known}; {twice}")
    for name in placeholders:
        require(any(part[1] == name for part in parts), f"{where}: {{{name}}} is missing; there must be {known}")
