"""Pays for short answers."""

from dataclasses import dataclass

from vidbridge.text.tags import answer_of


@dataclass(frozen=True)
class Brevity:
    max_words: int

    @property
    def maximum(self) -> float:
        return 1.0

    def __call__(self, sample, completions):
        return [float(0 < len(answer_of(done.text).split()) <= self.max_words) for done in completions]
