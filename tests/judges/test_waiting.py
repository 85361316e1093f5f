"""What a run says while it waits for a judge, and when it gives up."""

import socket

from tests.doors import ROOT, run
from tests.judges.builders import every_kind, openai_judge
from tests.judges.dialects import REFUSES, Dialect, speaking
from vidbridge.build import common
from vidbridge.build.common import check_tasks
from vidbridge.judges import pacing
from vidbridge.runtime import progress
from vidbridge.shapes_world.exact_judge import ExactJudge


def test_a_run_says_whom_it_waits_for_how_long_and_why_in_vain(tmp_path):
    """From the command line; nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    done = run(
        ROOT / "train.py", "debug=smoke", "judge=openai", f"judge.answers.base_url={url}", "judge.answers.model=judge",
        "judge.answers.deadline_s=1", "task=[qa,mix_vid_qa]", "task_mix=mix_vid_qa", f"paths.cache='{tmp_path}/cache'",
        "data.num_rows={train: 2, val: 2, test: 2}", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"asking the judge about gold answers: judge at {url}; an answer is waited for 1 s ..\n" in done.stdout
    assert f"could not be judged: judge at {url}: Connection error." in done.stderr


class Asked:
    """A reward with nothing but a judge."""

    def __init__(self, judge):
        self.judge = judge


def told(judge, monkeypatch, capsys):
    """What is printed while the self-test asks this judge one thing of each kind."""
    monkeypatch.setattr(common, "Loader", lambda *given: type("Loader", (), {"load": lambda self, samples: None})())
    monkeypatch.setattr(common, "self_test", lambda tasks, reward, perfect: reward.judge.ask(every_kind()))
    check_tasks({}, None, Asked(judge), None, perfect=True)
    return capsys.readouterr().out


def test_a_judge_that_answers_at_once_is_not_spoken_of(monkeypatch, capsys):
    assert told(ExactJudge(), monkeypatch, capsys) == ""


def test_while_a_run_waits_it_says_what_the_last_attempt_met(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0.2)
    monkeypatch.setattr(pacing, "LONGEST_WAIT_S", 0.1)
    with speaking(Dialect(lambda call: (503, {"error": {"message": "the model is being loaded"}}))) as url:
        lines = told(openai_judge(f"{url}/v1", deadline_s=2), monkeypatch, capsys).splitlines()
    assert lines[0] == f"asking the judge about gold answers: exact at {url}/v1; an answer is waited for 2 s .."
    assert any(
        line.startswith("still waiting after 0:0") and line.endswith("Error code: 503 - the model is being loaded")
        for line in lines[1:]
    )


def test_after_it_a_run_says_what_the_server_did_not_take(monkeypatch, capsys):
    with speaking(Dialect(REFUSES["thinks"][0])) as url:
        lines = told(openai_judge(f"{url}/v1"), monkeypatch, capsys).splitlines()
    told_last = "does not take all that was asked for; it is asked with temperature: False"
    assert lines[1:] == [f"exact at {url}/v1 {told_last}"]
