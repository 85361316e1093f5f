"""Studies: what a manifest may say, runs that fail or are killed, and the report from results by hand."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.ablations import __main__ as ablations
from experiments.ablations import manifest, results
from experiments.ablations.manifest import Claim, Manifest, Row
from experiments.ablations.report import table, write_report
from experiments.ablations.results import Item, Result, Settings
from experiments.ablations.running import REPOSITORY, Run, run_missing, runs_of
from experiments.ablations.scores import difference, score
from tests.composing import small_run
from tests.doors import FORKS
from vidbridge.errors import ConfigError
from vidbridge.record.console import Console

STUDY = """
question: Which is it?
baseline: naive
seeds: [0, 1]
equal: [steps]
common: [steps=4]
rows:
  naive: {title: QA + caption, overrides: [task_mix=naive]}
  proxy: {title: all four, overrides: [task_mix=proxy], paper: {Video-MME: 64.3}}
claims:
  - {says: proxies help, task: qa, higher: proxy, lower: naive}
"""
# What a run leaves, in no time; it notes that it was started, fails where it is told to, and waits where it is told to.
FAKE_RUN = """
import json, sys, time
from pathlib import Path
run_dir = Path(sys.argv[1])
with (run_dir / "started").open("a") as file:
    file.write("started\\n")
if (run_dir / "fail").exists():
    sys.exit("error: it was told to")
while (run_dir / "wait").exists():
    time.sleep(0.05)
item = {"uid": "qa/test/0", "task": "qa", "source": "0.mp4", "totals": [1.0, 0.0]}
item |= {"gates": {"format": [1.0, 0.0]}, "terms": {"choice": [1.0, 1.0]}}
with (run_dir / "items.jsonl").open("w") as file:
    for when in ("before", "after"):
        for kind in ("sampled", "greedy"):
            file.write(json.dumps({"when": when, "kind": kind, **item}) + "\\n")
lines = [{"step": step, "rollout/tokens": 100.0} for step in (1, 2)]
(run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
scores = {"greedy": {"tasks": {"qa": {"max": 1.0}}}}
(run_dir / "summary.json").write_text(json.dumps({"steps": 2, "train_s": 3.5, "peak_rss_mb": 900, "after": scores}))
for step, size in ((1, 1500000), (2, 2500000)):
    (run_dir / "checkpoints" / str(step)).mkdir(parents=True)
    (run_dir / "checkpoints" / str(step) / "weights").write_bytes(b"0" * size)
"""


def study_in(folder, text=STUDY, name="study"):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def runs_in(folder, path=None):
    path = path or study_in(folder)
    return runs_of(path.stem, manifest.read(path), folder / "results" / path.stem, folder / "outputs")


def fake_command(run):
    return [sys.executable, "-c", FAKE_RUN, str(run.run_dir)]


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(Run, "command", fake_command)


def starts(run):
    path = run.run_dir / "started"
    return path.read_text().count("started") if path.exists() else 0


@pytest.mark.parametrize("name", sorted(path.stem for path in manifest.HERE.glob("*.yaml")))
def test_every_study_of_the_house_composes(name):
    study = manifest.read(manifest.find(name))
    assert study.equal and len(study.seeds) >= 3


MISTAKES = {
    "task_mix=proxy,": ("task_mix=prxy,", ["rows.proxy", "no 'prxy'", "Did you mean"]),
    "overrides: [task_mix=proxy]": ("overrides: [optim.lr=fast]", ["rows.proxy", "optim.lr", "fast"]),
    "paper: {": ("papers: {", ["papers"]),
    "seeds: [0, 1]": ("seeds: [0, 0]", ["seeds must be different"]),
    "baseline: naive": ("baseline: navie", ["no row 'navie'", "Did you mean 'naive'?"]),
    "equal: [steps]": ("equal: [stpes]", ["stpes"]),
    "[task_mix=naive]": ("[task_mix=proxy]", ["rows.proxy is the same as rows.naive"]),
    "[task_mix=proxy]": ("[task_mix=proxy, seed=3]", ["rows.proxy: seed=3", "every run"]),
    "[task_mix=proxy], ": ("[steps=5], ", ["steps shall be equal", "5 in rows.proxy", "4 in rows.naive"]),
    "title: all four": ("titel: all four", ["titel"]),
    "higher: proxy": ("higher: prox", ["claims[0]", "no row 'prox'", "Did you mean 'proxy'?"]),
    "task: qa": ("task: quiz", ["claims[0]", "no task 'quiz'"]),
    "question: ": ("question: [", [""]),
}


@pytest.mark.parametrize("right", MISTAKES)
def test_a_mistake_in_a_study_is_found_before_anything_runs(right, tmp_path):
    wrong, words = MISTAKES[right]
    text = STUDY.replace(right, wrong) if right in STUDY else STUDY.replace(right.rstrip(","), wrong.rstrip(","))
    assert text != STUDY
    with pytest.raises(ConfigError) as refused:
        runs_in(tmp_path, study_in(tmp_path, text))
    assert all(word in str(refused.value) for word in ["study.yaml", *words])


def test_a_row_may_vary_what_it_says_that_it_varies(tmp_path):
    text = STUDY.replace("[task_mix=proxy]", "[task_mix=proxy, steps=5], unequal: [steps]")
    assert manifest.read(study_in(tmp_path, text)).rows["proxy"].unequal == ["steps"]


def test_what_has_run_does_not_run_again(tmp_path, faked):
    runs = runs_in(tmp_path)
    assert [str(run) for run in runs] == ["naive seed 0", "proxy seed 0", "naive seed 1", "proxy seed 1"]
    assert run_missing(runs, jobs=2, console=Console()) == []
    assert run_missing(runs, jobs=1, console=Console()) == []
    assert [starts(run) for run in runs] == [1, 1, 1, 1]
    result = results.read(runs[0].result)
    # of two samples one is well formed: it earns 1 and the other nothing
    assert result.items[0].earned == {"total": 0.5, "choice": 0.5}
    assert [item.kind for item in result.items] == ["sampled", "greedy"]  # those after training alone
    assert result.cost == {"updates": 2.0, "train_s": 3.5, "tokens": 200.0, "peak_mb": 900, "checkpoint_mb": 2.5}


def test_a_run_that_fails_stops_no_other_and_is_tried_again(tmp_path, faked, capsys):
    runs = runs_in(tmp_path)
    runs[1].run_dir.mkdir(parents=True)
    (runs[1].run_dir / "fail").touch()
    assert run_missing(runs, jobs=1, console=Console()) == [runs[1]]
    assert "proxy seed 0: FAILED with status 1: error: it was told to" in capsys.readouterr().out
    (runs[1].run_dir / "fail").unlink()
    assert run_missing(runs, jobs=1, console=Console()) == []
    assert [starts(run) for run in runs] == [1, 2, 1, 1]


@pytest.mark.parametrize("name, text", [("summary.json", None), ("summary.json", "{}"), ("items.jsonl", '{"when": "a')])
def test_a_run_that_leaves_no_whole_record_stops_no_other(name, text, tmp_path, monkeypatch, capsys):
    broken = f"(run_dir / '{name}').unlink()" if text is None else f"(run_dir / '{name}').write_text({text!r})"
    spoilt = f"{FAKE_RUN}\nif run_dir.parts[-2:] == ('proxy', 'seed0'):\n    {broken}\n"
    monkeypatch.setattr(Run, "command", lambda run: [sys.executable, "-c", spoilt, str(run.run_dir)])
    runs = runs_in(tmp_path)
    assert run_missing(runs, jobs=1, console=Console()) == [runs[1]]
    assert [run.result.exists() for run in runs] == [True, False, True, True]
    assert f"proxy seed 0: FAILED: no result in {runs[1].run_dir} (" in capsys.readouterr().out


def test_a_study_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="study.yaml: "):
        manifest.read(tmp_path / "study.yaml")


def test_the_same_settings_in_another_study_are_not_run_again(tmp_path, faked):
    run_missing(runs_in(tmp_path), jobs=2, console=Console())
    text = STUDY.replace("rows:\n  naive", "rows:\n  renamed").replace(": naive", ": renamed")
    other = runs_in(tmp_path, study_in(tmp_path, text, "other"))
    assert run_missing(other, jobs=1, console=Console()) == []
    assert [starts(run) for run in other] == [0, 0, 0, 0]
    assert other[0].result.read_bytes() == runs_in(tmp_path)[0].result.read_bytes()


def test_a_result_of_other_settings_is_refused_by_name(tmp_path, faked):
    run_missing(runs_in(tmp_path), jobs=2, console=Console())
    with pytest.raises(ConfigError, match="naive-seed0.jsonl.gz is of other settings"):
        runs_in(tmp_path, study_in(tmp_path, STUDY.replace("steps=4", "steps=5")))


def run_faked(folder):
    Run.command = fake_command
    try:
        run_missing(runs_in(folder), jobs=1, console=Console())
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_is_killed_goes_on_and_repeats_nothing(signum, tmp_path, faked):
    runs = runs_in(tmp_path)
    wait = runs[1].run_dir / "wait"
    wait.parent.mkdir(parents=True)
    wait.touch()
    runner = FORKS.Process(target=run_faked, args=(tmp_path,))
    runner.start()
    while not starts(runs[1]):
        time.sleep(0.05)
    os.kill(runner.pid, signum)
    runner.join(60)
    assert runner.exitcode == (130 if signum == signal.SIGTERM else -signum)
    assert [run.result.exists() for run in runs] == [True, False, False, False]
    # killed outright, it leaves a run behind, which still works when the study is started again
    subprocess.Popen(["sh", "-c", f"sleep 2; rm {wait}"])
    assert run_missing(runs, jobs=1, console=Console()) == []
    assert [starts(run) for run in runs] == [1, 1 if signum == signal.SIGKILL else 2, 1, 1]


def result_of(seed, choices, *, recall=(), precision=()):
    """QA items that earned ``choices``, of one video each, and caption items."""
    items = []
    for n, choice in enumerate(choices):
        earned = {"total": choice, "choice": choice}
        items.append(Item(kind="greedy", task="qa", uid=f"qa/{n}", source=n, earned=earned))
    for n, (found, right) in enumerate(zip(recall, precision)):
        earned = {"total": found + 0.5 * right, "event_recall": found, "event_precision": right}
        items.append(Item(kind="greedy", task="caption", uid=f"caption/{n}", source=100 + n, earned=earned))
    settings = Settings(overrides=("steps=4",), trains=True, seed=seed)
    return Result(
        settings=settings,
        cost={"updates": 4.0, "train_s": 10.0, "tokens": 5000.0},
        maximum={"qa": 1.0} | ({"caption": 1.9} if recall else {}),
        items=[*items, *(dataclasses.replace(item, kind="sampled") for item in items)],
    )


def test_a_score_is_the_mean_over_seeds_and_items():
    # (1 + 0 + 1 + 1) / 4
    estimate = score({0: result_of(0, [1, 0]), 1: result_of(1, [1, 1])}, "greedy", "qa")
    assert estimate.mean == 75 and (estimate.num_seeds, estimate.num_items) == (2, 2)


def test_f1_is_that_of_mean_recall_and_mean_precision():
    # recall 0.6, precision 0.3: 2 * 0.18 / 0.9 = 0.4; the mean of the items' F1 would be (1 / 1.5 + 0) / 2 = 0.33
    row = {0: result_of(0, [1], recall=[1.0, 0.2], precision=[0.5, 0.1])}
    assert score(row, "greedy", "caption").mean == pytest.approx(40)


def test_a_difference_is_paired_by_seed_and_item():
    # each item of each seed gains 0.25 and they vary by much more: the difference is certain, the scores are not
    base = {seed: result_of(seed, [0, 0.75, 0.25, 0.5]) for seed in (0, 1)}
    row = {seed: result_of(seed, [0.25, 1, 0.5, 0.75]) for seed in (1, 2)}
    gained = difference(row, base, "greedy", "qa")
    assert (gained.mean, gained.low, gained.high, gained.num_seeds) == (25, 25, 25, 1)  # seed 1 is all they share
    assert gained.is_clear and score(row, "greedy", "qa").low < 50


def test_items_that_one_side_could_not_score_are_left_out_of_a_difference():
    # qa/0: 1 - 0; qa/1 is missing in the baseline
    gained = difference({0: result_of(0, [1, 0])}, {0: result_of(0, [0])}, "greedy", "qa")
    assert (gained.mean, gained.num_items) == (100, 1)


def test_rows_without_a_common_seed_are_not_compared():
    assert difference({0: result_of(0, [1])}, {1: result_of(1, [1])}, "greedy", "qa") is None


def write_results(folder):
    for seed in (0, 1):
        caption = {"recall": [0.5, 1.0], "precision": [0.5, 1.0]}
        results.write(result_of(seed, [0, 1, 0, 1], **caption), results.result_path(folder, "naive", seed))
        results.write(result_of(seed, [1, 1, 1, 1], **caption), results.result_path(folder, "proxy", seed))
    return folder


def two_rows():
    rows = {
        "naive": Row(title="QA + caption", paper={"Video-MME": 60.0}),
        "proxy": Row(title="all four", paper={"Video-MME": 64.3}),
    }
    return Manifest(question="Which is it?", baseline="naive", seeds=[0, 1, 2], rows=rows)


def test_the_report_has_the_numbers_and_says_what_is_missing(tmp_path):
    text = write_report("study", two_rows(), write_results(tmp_path))
    assert "4 of 6 runs; missing: naive (seeds 2), proxy (seeds 2)." in text
    assert "| row | seeds | QA accuracy % | caption F1 % |" in text
    assert "| all four | 2 | 100.0 [100.0, 100.0] | 75.0 [50.0, 100.0] |" in text
    # no gain in 1/16 of the resamples: not clear
    assert "| all four | +50.0 [0.0, 100.0] | +0.0 [0.0, 0.0] |" in text
    assert "| all four | 4 | 10 | 5 |" in text  # cost
    assert "| Q\\|A |" in table(["Q|A"], [])
    assert "of 1 differences to QA + caption, 1 have the paper's sign, 0 of them clearly" in text


def test_a_claim_holds_where_the_whole_interval_does(tmp_path):
    claims = [("qa", "proxy", "naive"), ("qa", "naive", "proxy"), ("caption", "proxy", "naive")]
    said = [Claim(says=f"claim {n}", task=task, higher=one, lower=two) for n, (task, one, two) in enumerate(claims)]
    for seed in (0, 1):
        results.write(result_of(seed, [0, 0], recall=[1.0], precision=[1.0]), tmp_path / f"naive-seed{seed}.jsonl.gz")
        results.write(result_of(seed, [1, 1], recall=[1.0], precision=[1.0]), tmp_path / f"proxy-seed{seed}.jsonl.gz")
    text = write_report("study", dataclasses.replace(two_rows(), claims=said), tmp_path)
    gain, loss = "+100.0 [100.0, 100.0]", "-100.0 [-100.0, -100.0]"
    lines = [line for line in text.splitlines() if line.startswith("| claim ")]
    assert lines == [
        "| claim | difference | paper | greedy | sampled |",
        f"| claim 0 | proxy - naive, QA accuracy % | +4.3 | **holds**: {gain} | **holds**: {gain} |",
        f"| claim 1 | naive - proxy, QA accuracy % | -4.3 | **the opposite**: {loss} | **the opposite**: {loss} |",
        "| claim 2 | proxy - naive, caption F1 % | - | not seen: +0.0 [0.0, 0.0] | not seen: +0.0 [0.0, 0.0] |",
    ]


def test_a_claim_about_what_has_not_run_is_open(tmp_path):
    results.write(result_of(0, [1]), tmp_path / "naive-seed0.jsonl.gz")
    claims = [Claim(says="claim", task="qa", higher="proxy", lower="naive")]
    text = write_report("study", dataclasses.replace(two_rows(), claims=claims), tmp_path)
    assert "| claim | proxy - naive, QA accuracy % | +4.3 | not run | not run |" in text


def test_the_report_comes_out_byte_by_byte_from_a_copy_of_the_results(tmp_path):
    write_results(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert write_report("study", two_rows(), tmp_path / "one") == write_report("study", two_rows(), tmp_path / "other")
    for name in ("report.csv", "report.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_same_result_is_the_same_file(tmp_path):
    results.write(result_of(0, [1, 0]), tmp_path / "a.gz")
    results.write(results.read(tmp_path / "a.gz"), tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_a_broken_result_is_named(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="a.gz cannot be read as a result"):
        results.read(tmp_path / "a.gz")


@pytest.mark.slow
def test_real_rows_survive_a_kill_and_make_a_report(tmp_path, random_qwen_folder, monkeypatch, capfd):
    common = [*small_run(random_qwen_folder, tmp_path / "cache"), "steps=6", "checkpoint.every=1", "eval.before=false"]
    rows = "  base: {title: base, trains: false}\n  qa: {title: QA, overrides: [task_mix=qa]}"
    path = study_in(
        tmp_path, f"question: x\nbaseline: base\nseeds: [0]\ncommon: {json.dumps(common)}\nrows:\n{rows}\n"
    )
    run = ["-m", "experiments.ablations", "run", str(path), "--outputs", str(tmp_path / "outputs")]
    qa = tmp_path / "outputs" / "study" / "qa" / "seed0"
    with subprocess.Popen([sys.executable, *run], cwd=REPOSITORY, start_new_session=True) as runner:
        while not list(qa.glob("checkpoints/step_*")):
            assert runner.poll() is None, (qa / "output.log").read_text()
            time.sleep(0.02)
        (child,) = [int(pid) for pid in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()]
        os.kill(runner.pid, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", run[1:])
    assert ablations.main() == 0, (qa / "output.log").read_text()
    assert "base seed 0" not in capfd.readouterr().out and "going on from step_" in (qa / "output.log").read_text()
    monkeypatch.setattr(sys, "argv", ["experiments.ablations", "report", str(path)])
    assert ablations.main() == 0
    told = capfd.readouterr()
    assert "2 of 2 runs." in told.out and "| QA | 1 |" in told.out and not told.err
