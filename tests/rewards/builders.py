"""Samples and completions in a word, for the reward tests."""

from vidbridge.types import Completion, Sample, VideoRef


def sample(task, answer, *, question="What happens?", options=()):
    return Sample(
        uid=f"{task}/test/0",
        task=task,
        question=question,
        answer=answer,
        options=options,
        videos=(VideoRef(path="0.mp4"),),
    )


def said(*answers):
    """Well-formed completions with these answers."""
    return raw(*(f"<think>hm</think><answer>{answer}</answer>" for answer in answers))


def raw(*texts):
    return tuple(Completion(text=text, token_ids=()) for text in texts)
