"""A rollout engine that writes the same for every prompt, each sibling a word more."""

from dataclasses import dataclass

from vidbridge.rollout.base import RolloutConfig
from vidbridge.types import Completion


@dataclass(frozen=True, kw_only=True)
class EchoConfig(RolloutConfig):
    word: str
    times: int = 1

    def build(self, policy):
        return Echo(policy.processor, f"{self.word} " * self.times)


class Echo:
    def __init__(self, processor, text):
        self.processor, self.text = processor, text

    def sync(self, policy):
        pass

    def generate(self, prompts, group_size, sampling, *, seed, indices=None, ended=None, progress=None):
        texts = [self.text + "it " * number for number in range(group_size)]
        group = tuple(Completion(text=text, token_ids=self.processor.encode_completion(text)) for text in texts)
        for index in indices or range(len(prompts)):
            if ended:
                ended(index, group)
        return [group] * len(prompts)
