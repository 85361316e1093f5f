"""Judging over HTTP: many requests in flight against one at a time, under faults, and through an outage.

    python -m experiments.bench.judge [--json FILE] [--outage SECONDS]

The server is a real one in a process of its own (experiments/bench/faulty_server.py) that answers by rule after 100 ms,
so that every score is known. One at a time is what the peers do: a request, its reply, the next request.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Sequence

from experiments.bench.faulty_server import Script, running, spawned
from experiments.bench.harness import CONSOLE, arguments, finish, medians, show, show_seconds
from vidbridge.judges.base import JudgeRequest, JudgeUnavailable, Reply
from vidbridge.judges.llm_judge import ModelJudge
from vidbridge.judges.openai_chat import OpenAIChat
from vidbridge.shapes_world.exact_judge import ExactJudge
from vidbridge.shapes_world.language import KINDS

LATENCY_S = 0.1
IN_FLIGHT = 64
FAULT_FRAC = 0.3


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("judging over HTTP: throughput, faults, an outage", repeats=3)
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS", help="how long nobody listens")
    args = parser.parse_args(argv)
    count = 40 if args.quick else 1280
    figures = {
        **throughput(count, one_by_one=max(count // 32, 4), repeats=args.repeats),
        **under_faults(count),
        **through_outage(args.outage, 16 if args.quick else IN_FLIGHT),
    }
    show(
        f"{FAULT_FRAC:.0%} of all calls fail; then nobody listens for {args.outage:g} s",
        ("", "wrong", "unscored"),
        [
            ("faults", str(figures["wrong_under_faults"]), str(figures["unscored_under_faults"])),
            ("outage, waited for", str(figures["wrong_after_outage"]), str(figures["unscored_after_outage"])),
            ("outage, masked", "0", str(figures["masked_in_outage"])),
        ],
    )
    finish(figures, args)


def requests(count: int, salt: str = "") -> list[JudgeRequest]:
    """Different ones, so that no cache helps."""
    kinds = list(KINDS)
    return [
        JudgeRequest(
            kind="grade",
            question="What happens?",
            reference=f"the square {kinds[number % len(kinds)]}",
            text=f"In take {salt}{number} it {kinds[number // len(kinds) % len(kinds)]}.",
        )
        for number in range(count)
    ]


def judge_at(url: str, **settings: float) -> ModelJudge:
    chat = OpenAIChat(base_url=url, model="exact", max_concurrent=IN_FLIGHT, **settings)  # type: ignore[arg-type]
    return ModelJudge(answers=chat, max_unscored_frac=1.0)


def throughput(count: int, one_by_one: int, repeats: int) -> dict[str, float]:
    """Seconds for ``count`` requests side by side, and for fewer one after another, a request."""
    rounds = iter(range(10**6))
    with spawned("--latency", str(LATENCY_S)) as url:
        judge = judge_at(url)

        def side_by_side() -> None:
            judge.ask(requests(count, f"a{next(rounds)}-"))

        def sequential() -> None:
            for request in requests(one_by_one, f"b{next(rounds)}-"):
                judge.ask([request])

        seconds = medians({f"{IN_FLIGHT} in flight": side_by_side, "one at a time": sequential}, repeats)
    together, alone = (value / number for value, number in zip(seconds.values(), (count, one_by_one)))
    show_seconds("seconds for 1,000 requests", dict(zip(seconds, (1000 * together, 1000 * alone))))
    return {"speedup": alone / together, "requests_per_s": 1 / together, "one_at_a_time_per_s": 1 / alone}


def under_faults(count: int) -> dict[str, int]:
    asked = requests(count)
    with spawned("--latency", str(LATENCY_S), "--fault-frac", str(FAULT_FRAC)) as url:
        wrong, unscored = compared(asked, judge_at(url, deadline_s=60.0, timeout_s=10.0).ask(asked))
    return {"wrong_under_faults": wrong, "unscored_under_faults": unscored}


def through_outage(outage_s: float, count: int) -> dict[str, float | bool]:
    """Nobody listens for so long: a deadline beyond it waits, a shorter one leaves all unscored until it is over."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, asked = f"http://127.0.0.1:{port}/v1", requests(count)
    waiting, masking = judge_at(url, deadline_s=2 * outage_s + 10), judge_at(url, deadline_s=outage_s / 4)
    replies: dict[str, list[Reply]] = {}
    started = time.monotonic()
    threads = [
        threading.Thread(target=lambda name=name, judge=judge: replies.update({name: judge.ask(asked)}))  # type: ignore
        for name, judge in (("waiting", waiting), ("masking", masking))
    ]
    for thread in threads:
        thread.start()
    CONSOLE.print(f"nobody listens for {outage_s:g} s ..", style="dim")
    time.sleep(outage_s)
    with running(Script(), port):
        for thread in threads:
            thread.join()
        waited_s = time.monotonic() - started
        wrong, unscored = compared(asked, replies["waiting"])
        _, masked = compared(asked, replies["masking"])
        for model in masking.models.values():  # what is tried is that it asks again, not how fast the machine is
            model.deadline_s = waiting.deadline_s
        _, still_unscored = compared(asked, masking.ask(asked))
    return {
        "outage_s": outage_s,
        "waited_s": round(waited_s, 1),
        "wrong_after_outage": wrong,
        "unscored_after_outage": unscored,
        "masked_in_outage": masked,
        "recovered_after_outage": wrong == unscored == still_unscored == 0 and masked == count,
    }


def compared(asked: Sequence[JudgeRequest], replies: Sequence[Reply]) -> tuple[int, int]:
    """How many replies are wrong, and how many there are not."""
    unscored = [isinstance(reply, JudgeUnavailable) for reply in replies]
    wrong = [reply != right for reply, right in zip(replies, ExactJudge().ask(asked), strict=True)]
    return sum(bad and not missing for bad, missing in zip(wrong, unscored)), sum(unscored)


if __name__ == "__main__":
    main()
