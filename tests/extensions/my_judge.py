"""A judge that is never content."""

from vidbridge.shapes_world.exact_judge import ExactJudge


class Strict(ExactJudge):
    def ask(self, requests):
        replies = super().ask(requests)
        return ['{"score": 0}' if each.kind == "grade" else reply for each, reply in zip(requests, replies)]
