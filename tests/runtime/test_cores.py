"""Cores, quotas and other people's processes, out of files such as Linux has them and out of real processes."""

import os
import re
import subprocess
import sys
import time

import pytest

from vidbridge.runtime import cores
from vidbridge.runtime.cores import Usage, advice, others_busy, usable


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with four cores of its own making; ``write(name, text)`` puts a file into it."""
    monkeypatch.setattr(cores, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "allowed", lambda: {0, 1, 2, 5})

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_without_a_quota_the_cores_are_those_allowed(machine):
    assert usable() == 4
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", "max 100000\n")
    assert usable() == 4


@pytest.mark.parametrize("quota, cores_worth", [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)])
def test_a_container_has_what_its_quota_is_worth_rounded_up(machine, quota, cores_worth):
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", quota)
    assert usable() == cores_worth


def test_a_quota_of_a_group_above_counts(machine):
    machine("proc/self/cgroup", "0::/slice/job/step\n")
    machine("cgroup/slice/job/step/cpu.max", "max 100000")
    machine("cgroup/slice/job/cpu.max", "300000 100000")
    machine("cgroup/slice/cpu.max", "800000 100000")
    assert usable() == 3


def test_a_path_of_the_host_that_the_container_does_not_see(machine):
    machine("proc/self/cgroup", "0::/kubepods/pod7\n")
    machine("cgroup/cpu.max", "300000 100000")
    assert usable() == 3


@pytest.mark.parametrize("text", ["", "max", "a b", "100000 0", "\x00"])
def test_a_file_of_another_form_is_no_quota(machine, text):
    machine("proc/self/cgroup", "5:cpu:/\n0::/\n")
    machine("cgroup/cpu.max", text)
    assert usable() == 4


def stat(*busy):
    """/proc/stat with so many ticks of work on each of eight cores, half of it niced."""
    lines = [f"cpu{n} {ticks - ticks // 2} {ticks // 2} 0 999 999 0 0 0 7 0" for n, ticks in enumerate(busy)]
    return "\n".join(["cpu  1 1 1 1 1 1 1 0 0 0", *lines, "intr 1 2 3"])


def test_what_others_compute_is_counted_on_the_cores_allowed_and_without_ourselves(machine, monkeypatch):
    second = os.sysconf("SC_CLK_TCK")
    machine("proc/stat", stat(*[0] * 8))
    before = Usage.now()
    # cores 0, 1, 2 and 5 are ours: 2 + 2 + 1 + 1 seconds of work in 2 s, of which 1 s is our own: 5 / 2
    machine("proc/stat", stat(*(number * second for number in (2, 2, 1, 2, 2, 1, 2, 2))))
    after = Usage(at_s=before.at_s + 2.0, all_s=Usage.now().all_s, own_s=before.own_s + 1.0)
    monkeypatch.setattr(Usage, "now", lambda: after)
    assert others_busy(before) == pytest.approx(2.5)


def test_where_the_system_tells_nothing_nobody_is_busy(machine):
    assert others_busy(Usage.now()) == 0.0


def test_a_process_beside_us_is_seen():
    """One that computes for a second and more on a core of its own, or on a part of ours."""
    if Usage.now().all_s is None:
        pytest.skip("no /proc/stat here")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            before = Usage.now()
            time.sleep(2)
            assert others_busy(before) > 0.2
        finally:
            other.kill()


@pytest.mark.parametrize(
    "threads, ranks, busy, told",
    [
        (4, 1, 0.0, ""),
        (4, 1, 0.4, ""),  # a shell, a browser
        (2, 2, 0.0, ""),
        (2, 1, 2.0, ""),
        (1, 1, 4.0, ""),  # one thread waits for nobody
        (4, 1, 1.2, "4 cores, 1.2 of them busy with other processes, and torch computes with 4 threads: .*THREADS=3 "),
        (4, 1, 4.0, "4 cores, 4.0 of them busy .*OMP_NUM_THREADS=1 "),
        (4, 2, 0.0, "4 cores, and torch computes with 4 threads on each of 2 ranks: .*OMP_NUM_THREADS=2 "),
    ],
)
def test_too_many_threads_are_told_with_what_to_set(machine, threads, ranks, busy, told):
    found = advice(threads, ranks, busy)
    assert re.match(told, found) if told else found == ""


def test_a_container_that_sees_more_cores_than_it_may_use(machine):
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/cpu.max", "200000 100000")
    assert advice(4, 1, 0.0).startswith("a quota of 2 of 4 cores, and torch computes with 4 threads: ")
    assert "OMP_NUM_THREADS=2 " in advice(4, 1, 0.0)
