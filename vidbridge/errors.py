"""Every error that has a message for the user and an exit status. Others are bugs, and show their traceback."""

from __future__ import annotations

import signal


class UserError(Exception):
    """An error whose message says what is wrong and what to do; a command ends with ``status``."""

    status = 1


class ConfigError(UserError, ValueError):
    """The configuration asks for something that cannot be."""

    status = 2


class DataError(UserError, ValueError):
    """Rows or videos that cannot be used; the message says where and why, one problem a line."""


class NoRows(DataError):
    """A split that has nothing for a task; the message says where it was looked for, and what to do about it."""


class VideoError(UserError, ValueError):
    """A video or an image that cannot be read: which file, why in a word, and in a sentence."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail} [{reason}]")
        self.path, self.reason, self.detail = path, reason, detail

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, str]]:
        return VideoError, (self.path, self.reason, self.detail)


class JudgeLost(UserError, RuntimeError):
    """So much goes unscored that training on the rest makes no sense; the message names who and why."""


class Diverged(UserError, RuntimeError):
    """The gradient has been NaN or infinite too often."""


class RolloutError(UserError, RuntimeError):
    """An engine cannot be given a prompt, or has given what no learner can use."""


class RolloutLost(RolloutError):
    """No engine is left to sample with. All ranks raise it at the same place, before they learn from the step."""

    agreed = True


class Mismatch(UserError, RuntimeError):
    """The sampler draws from another distribution than the one that is learnt."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or used; the message says which, why and what to do."""


class ModelUnfit(UserError):
    """A check of the model is not ok."""


class JobFailed(UserError, RuntimeError):
    """A job of a sweep that ran on another machine."""


class RankFailed(UserError, RuntimeError):
    """Another rank met an error, so that this one stops too; the message is that rank's."""


class Stopped(BaseException):
    """The run was asked to end; ``status`` is the exit status the shell expects, 128 + the signal's number.

    ``agreed``: every rank stops at the same step, so that they can still write a checkpoint together.
    """

    def __init__(self, signum: int, *, agreed: bool):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum
        self.agreed = agreed
