"""What a key may be set to, where there are few choices. Members are spelt as in the yaml: OmegaConf reads names."""

from __future__ import annotations

from enum import Enum


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(str, Enum):
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    eager = "eager"


class Schedule(str, Enum):
    linear = "linear"  # to zero at the last step
    constant = "constant"


class Split(str, Enum):
    train = "train"
    val = "val"
    test = "test"


class Prompting(str, Enum):
    """Which variant of the templates in conf/prompt."""

    thinking = "thinking"  # <think> .. </think>, then <answer> .. </answer>, as in training
    direct = "direct"  # the answer at once, and it is all of the reply


class WandbMode(str, Enum):
    auto = "auto"  # online when a key is configured, offline otherwise
    offline = "offline"
    off = "off"


class Resume(str, Enum):
    never = "never"  # the folder of the run must be a new one
    auto = "auto"  # go on from the newest good checkpoint in it, or start if there is none
