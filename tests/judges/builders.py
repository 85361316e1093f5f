"""Requests and judges in a word, for the judge tests."""

from vidbridge.judges.base import JudgeRequest
from vidbridge.judges.llm_judge import ModelJudge
from vidbridge.judges.openai_chat import OpenAIChat

SENTENCES = ("the square moves left", "it grows", "it moves up", "the square turns red", "it spins")


def grade(answer, reference="the square moves left"):
    return JudgeRequest(kind="grade", question="What happens?", reference=reference, text=answer)


def every_kind():
    """One request of each kind."""
    return [
        grade("it moves up"),
        JudgeRequest(kind="verdict", question="Which colour?", reference="red", text="it is red"),
        JudgeRequest(kind="extract", text="First the square moves left, then it grows."),
        JudgeRequest(kind="entail", text="It grows.", events=("the square grows", "it shrinks", "it spins")),
    ]


def openai_judge(url, *, cache=None, judge=None, **settings):
    """A judge at ``url`` with waits as short as a test needs."""
    chat = OpenAIChat(base_url=url, model="exact", **{"deadline_s": 10, "timeout_s": 5, **settings})
    return ModelJudge(answers=chat, cache=cache, **(judge or {}))
