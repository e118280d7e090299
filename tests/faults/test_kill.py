"""Killed writers, and writers beside one another: nothing acknowledged is lost, nothing is half there."""

import random
import subprocess
import sys
import time
from pathlib import Path

import zoo
from zoo import upkeep

WORKER = Path(__file__).with_name("worker.py")


def start(what: str, path: str, first: int, count: int) -> subprocess.Popen:
    """A writer that has opened the zoo and waits for `go`."""
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), what, path, str(first), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout.readline() == "ready\n"
    return worker


def go(worker: subprocess.Popen) -> None:
    worker.stdin.write("\n")
    worker.stdin.flush()


def test_kill_nine_during_adds(z):
    clock, acknowledged = random.Random(0), set()
    for trial in range(4):
        worker = start("add", z.path, 1000 * trial, 500)
        go(worker)
        first = worker.stdout.readline()
        time.sleep(clock.uniform(0, 0.25))
        worker.kill()
        lines = [first, *worker.stdout.read().splitlines(keepends=True)]
        worker.wait()
        acknowledged |= {line.strip() for line in lines if line.endswith("\n") and len(line.strip()) == 64}
        # The handle that was open all the time, and a new one, see the same whole records.
        for reader in (z, zoo.open(z.path)):
            report = reader.verify()
            assert report.ok, str(report)
            assert acknowledged <= set(reader.ids())
            assert len(reader) - len(acknowledged) <= trial + 1, "at most one add a kill was done but not acknowledged"
        assert all(sub.weights["fc.bias"].shape == (len(sub.task.labels),) for sub in z)
    assert len(acknowledged) >= 5
    upkeep.gc(z._store, grace_s=0)
    # Rows that a kill left without a log entry stay as long as the versions do; nothing else is left over.
    assert z.verify().ok and all("no log entry" in note for note in z.verify().notes)
    assert acknowledged <= set(z.ids())


def test_a_killed_creation_can_be_taken_up(tmp_path):
    """Whatever a kill leaves of a new zoo, opening it again finishes it."""
    import shutil

    zoo.open(tmp_path / "whole")
    names = ["bases", "tasks", "subnetworks", "scores"]
    for n in range(len(names) + 1):
        part = tmp_path / f"part{n}"
        part.mkdir()
        for name in names[:n]:
            shutil.copytree(tmp_path / "whole" / name, part / name)
        if n < len(names):
            (part / names[n] / "_delta_log").mkdir(parents=True)
        (part / ".tmp-0123456789abcdef").write_text("half a marker")
        z = zoo.open(part)
        assert z.verify().ok and len(z) == 0


def test_three_writers_at_once(z):
    """Adds, scores and compactions against each other: every acknowledged record is there."""
    workers = [start("busy", z.path, 1000 * i, 6) for i in range(3)]
    for worker in workers:
        go(worker)
    lines = []
    while any(worker.poll() is None for worker in workers):
        assert z.snapshot().subnetworks.num_rows >= 0
        time.sleep(0.05)
    for worker in workers:
        lines += worker.stdout.read().split("\n")
        assert worker.returncode == 0
    said = {line for line in lines if len(line) == 64}
    assert [line for line in lines if line and len(line) != 64] == []
    assert len(said) == 18 and set(z.ids()) == said
    report = z.verify()
    assert report.ok, str(report)


def test_three_processes_create_one_zoo_and_add_the_same_record(tmp_path):
    code = (
        f"import sys; sys.path[:0] = {[str(WORKER.parents[1] / 'zoo'), str(WORKER.parents[2])]!r}\n"
        "import zoo, factory\n"
        "print(zoo.open(sys.argv[1]).add(factory.make_sub(1)))"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "z")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {worker.communicate()[0].strip() for worker in workers}
    assert {worker.returncode for worker in workers} == {0}
    z = zoo.open(tmp_path / "z", create=False)
    assert len(said) == 1 and set(z.ids()) == said and z.verify().ok
