"""A directory has one writer, and a dead one never keeps the next from its work."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import re
import signal
import time
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

import convexprobe._locks as locks
from convexprobe._locks import DirectoryLock
from tests.processes import SERVER, end, start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks")


def hold(directory: Path, told: Connection, forks: bool = False, seconds: float = 60.0) -> None:
    """Hold the directory and tell so, or why not; a child sleeps too, and tells its number."""
    try:
        lock = DirectoryLock(directory, "probes")
    except RuntimeError as error:
        told.send(str(error))
        return
    if forks and os.fork() == 0:
        told.send(os.getpid())
        time.sleep(60)
    told.send("held")
    time.sleep(seconds)
    lock.close()


def holder(directory: Path, **more: Any) -> tuple[ForkServerProcess, Connection]:
    """A process that tries to hold the directory, and what it tells."""
    ours, theirs = SERVER.Pipe()
    process = start(partial(hold, directory, theirs, **more))
    theirs.close()
    return process, ours


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
    process, told = holder(tmp_path)
    try:
        assert told.recv() == "held"
        with pytest.raises(RuntimeError, match=f"process {process.pid} on .* writes probes there"):
            DirectoryLock(tmp_path, "probes")
    finally:
        process.kill()
        process.join()
    DirectoryLock(tmp_path, "probes").close()


def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    process, told = holder(tmp_path, forks=True)
    (child,) = {told.recv(), told.recv()} - {"held"}
    try:
        process.kill()
        process.join()
        DirectoryLock(tmp_path, "probes").close()
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


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
    process, told = holder(tmp_path)
    assert told.recv() == "held"
    process.kill()
    process.join()
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
    holders = [holder(tmp_path, seconds=0.5) for _ in range(4)]
    said = [told.recv() for _, told in holders]
    assert [end(process) for process, _ in holders] == [0] * 4
    expected = r"held|.*: (process \d+ on .* writes probes|another process writes) there; .*"
    assert all(re.fullmatch(expected, text) for text in said), said
    assert "held" in said


def test_a_holder_that_has_not_written_its_name_yet_counts(tmp_path: Path) -> None:
    with (tmp_path / ".convexprobe.lock").open("w") as file:
        locks.fcntl.flock(file, locks.fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"another process writes there; .* directory$"):
            DirectoryLock(tmp_path, "probes")
    DirectoryLock(tmp_path, "probes").close()


def test_a_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DirectoryLock(tmp_path / "nowhere", "probes")
