"""Checkpoints are whole or refused by name, and a run that goes on from one ends as if it had never stopped."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import train
from tests.composing import composed, config_of, small_run
from vidbridge.config.instantiate import free_keys
from vidbridge.config.renamed import ADDED
from vidbridge.errors import CheckpointError, Stopped
from vidbridge.policy.engines.local import LocalEngine
from vidbridge.runtime import checkpoint, launch
from vidbridge.runtime.checkpoint import Checkpointer, check_same, newest, verify, write_checkpoint
from vidbridge.runtime.jsonl_log import read_lines
from vidbridge.runtime.random_state import random_state, seed_everything, set_random_state


def fill(folder):
    (folder / "engine").mkdir()
    (folder / "engine" / "weights.bin").write_bytes(bytes(range(256)))


FILES = ("engine/weights.bin", "state.json", "manifest.json")
DAMAGE = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def test_what_is_written_is_found(tmp_path):
    for step in (5, 10):
        write_checkpoint(tmp_path, step, {"note": step * 2}, fill)
    found, refused = newest(tmp_path)
    assert (found.step, found.state["note"], refused) == (10, 20, [])
    assert verify(found.path) is None
    assert newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damage_is_refused_by_name_and_the_one_before_is_used(tmp_path, name, damage):
    for step in (5, 10):
        write_checkpoint(tmp_path, step, {}, fill)
    DAMAGE[damage](tmp_path / "step_000010" / name)
    found, refused = newest(tmp_path)
    assert found.step == 5
    # a manifest with a flipped bit accuses a file, or itself
    assert refused[0].startswith("step_000010: ") and (name in refused[0] or name == "manifest.json")


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_no_flipped_bit_passes(tmp_path_factory, place, bit):
    root = tmp_path_factory.mktemp("flip")
    path = write_checkpoint(root, 1, {"a": 1}, fill)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes = [file.stat().st_size for file in files]
    place %= sum(sizes)
    for file, size in zip(files, sizes):
        if place < size:
            content = bytearray(file.read_bytes())
            content[place] ^= 1 << bit
            file.write_bytes(content)
            break
        place -= size
    assert verify(path) is not None


def test_a_foreign_file_is_refused(tmp_path):
    path = write_checkpoint(tmp_path, 1, {}, fill)
    (path / "engine" / "more.bin").write_bytes(b"x")
    assert verify(path) == "engine/more.bin does not belong to it"


def test_a_full_disk_keeps_what_was_there_and_is_named(tmp_path):
    write_checkpoint(tmp_path, 5, {}, fill)

    def full(folder):
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .* MB free on its disk.*No space left"):
        write_checkpoint(tmp_path, 10, {}, full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000005"]
    assert newest(tmp_path)[0].step == 5


def test_a_writer_that_died_leaves_nothing_that_counts(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 5, {}, fill)
    monkeypatch.setattr(checkpoint, "sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 10, {}, fill)
    monkeypatch.undo()
    assert newest(tmp_path)[0].step == 5
    write_checkpoint(tmp_path, 10, {}, fill)
    assert newest(tmp_path)[0].step == 10


def test_the_newest_and_the_best_are_kept(tmp_path):
    writer = Checkpointer(tmp_path, every=5, keep_last=2, keep_best=True)
    assert [step for step in range(12) if writer.due(step)] == [0, 5, 10]
    for step in (5, 10, 15, 20):
        writer.save(step, {"best_step": 5}, fill)
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000005", "step_000015", "step_000020"]


def test_an_error_of_the_thread_is_not_lost(tmp_path):
    writer = Checkpointer(tmp_path, every=5, keep_last=2, keep_best=False)

    def broken(folder):
        raise OSError("the disk is gone")

    writer.save(5, {}, broken)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        writer.save(10, {}, fill)


def test_random_numbers_go_on_where_they_were():
    import random

    import numpy as np
    import torch

    seed_everything(3)
    state = json.loads(json.dumps(random_state()))
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    seed_everything(4)
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


# --- whole runs


STEPS = 6


def run(folder, cache, run_dir, *overrides):
    run_dir.mkdir(exist_ok=True)
    unwanted = ("debug", "algo.") if "algo=sft" in overrides else ("debug",)
    small = [text for text in small_run(folder, cache) if not text.startswith(unwanted)]
    cfg = composed(
        *small, "track=none", f"steps={STEPS}", "prompts_per_step=2", "eval.num_items=2", "eval.num_samples=1",
        "eval.every=3", "eval.every_items=1", "checkpoint.every=2", *overrides,
    )  # fmt: skip
    train.train(launch.to_dataclasses(cfg), launch.public(cfg), run_dir)


def timeless(run_dir):
    def counts(key):
        return not key.startswith("time/") and key != "rollout/tokens_per_s"

    lines = read_lines(run_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if counts(key)} for line in lines]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def unbroken(random_qwen_folder, cache, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken")
    run(random_qwen_folder, cache, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def unbroken_sft(untrained_folder, cache, tmp_path_factory):
    """The same by fine-tuning: random words earn no reward, so that only here the weights move."""
    run_dir = tmp_path_factory.mktemp("unbroken_sft")
    run(untrained_folder, cache, run_dir, "algo=sft")
    assert all(line["policy/grad_norm"] > 0 for line in read_lines(run_dir / "metrics.jsonl") if "sft/loss" in line)
    return run_dir


def stop_after(monkeypatch, step, signum=signal.SIGTERM):
    """The signal arrives in the middle of the step."""
    update = LocalEngine.update
    done = []

    def interrupted(engine):
        done.append(engine)
        if len(done) == step:
            os.kill(os.getpid(), signum)
        return update(engine)

    monkeypatch.setattr(LocalEngine, "update", interrupted)


@pytest.mark.parametrize("algo, cut", [("grpo", 1), ("grpo", 6), ("sft", 3)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(algo, cut, request, cache, tmp_path, monkeypatch):
    unbroken = request.getfixturevalue("unbroken_sft" if algo == "sft" else "unbroken")
    folder = request.getfixturevalue("untrained_folder" if algo == "sft" else "random_qwen_folder")
    stop_after(monkeypatch, cut)
    with pytest.raises(Stopped) as stopped:
        run(folder, cache, tmp_path, f"algo={algo}")
    assert stopped.value.status == 143
    assert newest(tmp_path / "checkpoints")[0].step == cut  # nothing is lost
    monkeypatch.undo()
    run(folder, cache, tmp_path, f"algo={algo}", "resume=auto")
    assert timeless(tmp_path) == timeless(unbroken)
    assert (tmp_path / "completions.jsonl").read_bytes() == (unbroken / "completions.jsonl").read_bytes()
    one, other = (load_file(path / "model" / "model.safetensors") for path in (tmp_path, unbroken))
    assert all((one[name] == other[name]).all() for name in other)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (tmp_path, unbroken)]
    assert summaries[0]["before"] == summaries[1]["before"] and summaries[0]["after"] == summaries[1]["after"]


def test_a_damaged_newest_checkpoint_falls_back(unbroken, random_qwen_folder, cache, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 5)
    with pytest.raises(Stopped):
        run(random_qwen_folder, cache, tmp_path)
    monkeypatch.undo()
    DAMAGE["flipped"](tmp_path / "checkpoints" / "step_000005" / "engine.safetensors")
    run(random_qwen_folder, cache, tmp_path, "resume=auto")
    assert "refused step_000005: engine.safetensors is damaged" in capsys.readouterr().out
    assert timeless(tmp_path) == timeless(unbroken)


def test_another_configuration_is_refused_with_what_differs(unbroken, random_qwen_folder, cache):
    with pytest.raises(CheckpointError, match=r"frames.max_frames: 8 -> 4\n.*optim.lr: 0.0002 -> 0.1") as error:
        run(random_qwen_folder, cache, unbroken, "resume=auto", "frames.max_frames=4", "optim.lr=0.1", "steps=9")
    assert "steps" not in str(error.value).replace("prompts_per_step", "")


def test_a_judge_may_have_moved_but_not_changed():
    record = launch.public(composed("judge=openai_two"))
    moved = launch.public(
        composed("judge=openai_two", "judge.answers.base_url=http://there:1/v1", "judge.cache.max_mb=1",
                 "judge.events.deadline_s=9", "judge.answers.api_key_env=MY_KEY", "judge.window=9")
    )  # fmt: skip
    free = list(free_keys(config_of("judge=openai_two")))
    check_same(record, moved, Path("step_1"), free)
    changed = launch.public(composed("judge=openai_two", "judge.events.model=another"))
    with pytest.raises(CheckpointError, match="judge.events.model: Qwen/Qwen2.5-14B-Instruct -> another"):
        check_same(record, changed, Path("step_1"), free)


def test_a_run_from_before_a_key_existed_can_be_gone_on_with_unless_it_says_otherwise_now():
    now = launch.public(composed())
    before = json.loads(json.dumps(now))
    for key in ADDED:
        node, _, name = key.rpartition(".")
        assert before[node].pop(name, "lacks") == ADDED[key], "it is today's default"
    check_same(before, now, Path("step_1"), ())
    corrected = launch.public(composed("algo.correction=token_truncation"))
    with pytest.raises(CheckpointError, match="algo.correction: none -> token_truncation"):
        check_same(before, corrected, Path("step_1"), ())


def test_sigint_has_its_own_status(random_qwen_folder, cache, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1, signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        run(random_qwen_folder, cache, tmp_path)
    assert stopped.value.status == 130
