"""Files appear whole or not at all, whoever else writes, and no file of others blocks a reader."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from convexprobe._files import machine, read_json, read_regular, remove_leftovers, replacing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, links and permissions")


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_threads_that_write_one_file_never_tear_it(tmp_path: Path) -> None:
    path, torn = tmp_path / "a.bin", []

    def write(value: int) -> None:
        for _ in range(20):
            with replacing(path) as temporary:
                temporary.write_bytes(bytes([value]) * 10_000)
            torn.extend(v for v in [set(path.read_bytes())] if len(v) != 1)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torn and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o440])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert not stat.S_IMODE(temporary.stat().st_mode) & ~(mode | 0o600)
        temporary.write_bytes(b"after")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"after", mode)


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "new") as temporary:
        temporary.touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_and_the_file_that_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "latest.gif"
    link.symlink_to("disk/run-7.bin")
    for content in (b"first", b"second"):  # the first makes the file
        with replacing(link) as temporary:
            assert temporary.parent == tmp_path / "disk" and temporary.suffix == ".gif"
            temporary.write_bytes(content)
        assert link.is_symlink() and (tmp_path / "disk/run-7.bin").read_bytes() == content


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "missing directory"])
def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a" / "b" if kind == "missing directory" else tmp_path / "a"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    message = f"{kind}.*{path}" if path.exists() else f"No such.*{path}"
    with pytest.raises(OSError, match=message), replacing(path):
        raise AssertionError("work was done")


def test_only_our_leftovers_are_deleted_and_only_of_the_dead_or_an_hour_old(tmp_path: Path) -> None:
    def leave(name: str, age: float = 0.0) -> Path:
        (path := tmp_path / name).write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
        return path

    dead, here = dead_process(), machine()
    (tmp_path / "photos").mkdir()
    stay = [
        leave(f".convexprobe-{here}-{os.getpid()}-{'0' * 16}.tmp.bin"),
        leave(f".convexprobe-00000000-{dead}-{'0' * 16}.tmp.bin", age=3000),  # another machine
        leave(f".convexprobe-{here}-{dead}-{'0' * 16}.bin"),
        leave(".notes.123.tmp.txt", age=1e6),
        leave("a.tmp", age=1e6),
        leave(".convexprobe-mine.tmp", age=1e6),
        leave(f".convexprobe-{here}-{'9' * 30}-{'0' * 16}.tmp"),
    ]
    go = [
        leave(f".convexprobe-{here}-{dead}-{'0' * 16}.tmp.bin"),
        leave(f".convexprobe-00000000-{dead}-{'0' * 16}.tmp", age=4000),
    ]
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in stay) and not any(path.exists() for path in go)


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_reading_neither_blocks_nor_goes_on_for_ever(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"a.json': expected a regular file, found a {kind}"):
        read_regular(path, 1000)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match="expected at most 1000 bytes, found 1099511627776"):
        read_regular(tmp_path / "a.json", 1000)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 200_000, '{"a": "\\ud8"}', "\xff\xfe"])
def test_what_is_not_a_json_object_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.json': (not JSON|expected a JSON object)"):
        read_json(tmp_path / "a.json")
