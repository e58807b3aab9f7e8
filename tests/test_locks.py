"""A directory has one writer, and a dead one never keeps the next from its work."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import convexprobe._locks as locks
from convexprobe._locks import DirectoryLock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks")

HOLD = """
import os, sys, time
from convexprobe._locks import DirectoryLock
lock = DirectoryLock(sys.argv[1], "probes")
if sys.argv[2:] == ["fork"] and os.fork() == 0:
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)
os.write(1, b"held\\n")
time.sleep(60)
"""


def holder(directory: Path, *more: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A process that holds the directory, and what it printed by then."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [process.stdout.readline() for _ in range(1 + len(more))]


@pytest.fixture(params=["flock", "no flock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's locks, and on a file system that has none."""
    if request.param == "no flock":

        def flock(file: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
    return request.param


@pytest.mark.usefixtures("kind")
def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, "probes") as lock:
        expected = f"{tmp_path}': process {os.getpid()} on {re.escape(os.uname().nodename)} writes"
        with pytest.raises(RuntimeError, match=f"{expected} probes there; let it finish"):
            DirectoryLock(tmp_path, "activations")
    lock.close()  # once more does no harm
    assert not list(tmp_path.iterdir())
    again = DirectoryLock(tmp_path, "activations")
    del again
    gc.collect()  # who holds it by nothing holds it no more
    DirectoryLock(tmp_path, "activations").close()


def test_another_process_is_refused_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    process, _ = holder(tmp_path)
    try:
        with pytest.raises(RuntimeError, match=f"process {process.pid} on .* writes probes there"):
            DirectoryLock(tmp_path, "probes")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    DirectoryLock(tmp_path, "probes").close()


def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    process, lines = holder(tmp_path, "fork")
    child = int(next(line for line in lines if line[0].isdigit()))
    try:
        process.kill()
        process.wait()
        DirectoryLock(tmp_path, "probes").close()
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.usefixtures("kind")
def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, "probes") as lock:
        child = multiprocessing.get_context("fork").Process(target=lock.close)
        child.start()
        child.join()
        assert child.exitcode == 0
        with pytest.raises(RuntimeError, match="writes probes there"):
            DirectoryLock(tmp_path, "probes")


@pytest.mark.usefixtures("kind")
def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    process, _ = holder(tmp_path)
    process.kill()
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    DirectoryLock(tmp_path, "probes").close()
    assert not list(tmp_path.iterdir())


def test_without_locks_a_holder_elsewhere_counts_until_its_file_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / ".convexprobe.lock"
    for text in ("", "[]", '{"pid": 1, "host": "a", "machine": "elsewhere", "what": "probes"}'):
        path.write_text(text)
        with pytest.raises(RuntimeError, match=f"writes .*delete .{path}"):
            DirectoryLock(tmp_path, "probes")
    path.unlink()
    DirectoryLock(tmp_path, "probes").close()


def test_of_many_at_once_one_writes(tmp_path: Path) -> None:
    script = HOLD.replace("import os", "import time; time.sleep(1e-3)\nimport os")
    script = script.replace("time.sleep(60)", "time.sleep(0.5)")
    run = [sys.executable, "-c", script, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(run, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    start = time.monotonic()
    outputs = [process.communicate() for process in processes]
    assert time.monotonic() - start < 60
    for out, err in outputs:
        assert out == "held\n" or "writes probes there" in err, err
    assert any(out for out, _ in outputs)


def test_a_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DirectoryLock(tmp_path / "nowhere", "probes")
