"""Files that appear complete or not at all, and files of others, read with care."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

Name = str | os.PathLike[str]

PREFIX = ".convexprobe"
"""What the names of our bookkeeping files begin with: a writer's lock, and temporary files."""

_TEMPORARY = re.compile(r"\.convexprobe-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")
"""Temporary names: the machine and process of the writer, then 64 random bits."""

_OLD = 3600.0
"""Seconds without a write after which a temporary file is given up, whoever writes it."""


@contextmanager
def replacing(path: Name) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, to write to; moved over it at the end.

    After an error the temporary file is gone and `path` as it was. Afterwards the bytes and the
    name are on the disk (`fsync` of the file and of its directory), so that a file written later
    never exists without it. A file that is replaced keeps its permissions. If `path` is a symbolic
    link, the file that it points to is replaced and the link stays, as with `open(path, "w")`.

    Raises:
        OSError: the directory is missing or cannot be written, or `path` is not a regular file.
    """
    target = Path(os.path.realpath(path))
    name = f"{PREFIX}-{machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp{Path(path).suffix}"
    temporary = target.with_name(name)
    mode = None
    with suppress(FileNotFoundError):
        found = target.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileExistsError(errno.EEXIST, _not_regular(found.st_mode), os.fspath(path))
        mode = stat.S_IMODE(found.st_mode)
    try:
        # O_EXCL: no file of anybody else, and no link, is written to
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(temporary, flags, 0o666 if mode is None else mode & 0o666 | 0o600))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        yield temporary
        _sync(temporary)
        if mode is not None:
            with suppress(OSError):  # some file systems have no permissions
                os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems have no directories to sync
        _sync(target.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete, and on the disk, or not at all; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of writers that are dead, and those an hour old."""
    for path in directory.glob(f"{PREFIX}-*"):
        writer = _TEMPORARY.match(path.name)
        with suppress(OSError):  # gone meanwhile, or another user's
            found = path.lstat()
            if writer and stat.S_ISREG(found.st_mode):
                old = time.time() - found.st_mtime > _OLD
                if old or is_dead(writer[1], int(writer[2])):
                    path.unlink()


def is_bookkeeping(path: Path) -> bool:
    """Whether a file of a directory is a lock or a temporary file of ours, not its content."""
    return path.name.startswith(PREFIX)


def open_regular(path: Name) -> BinaryIO:
    """Open a file to read, unbuffered; refuse what would block or never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: a pipe, a device or a directory.
    """
    # O_NONBLOCK: opening a pipe would wait for its writer
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(mode := os.fstat(file).st_mode):
            raise ValueError(f"{os.fspath(path)!r}: {_not_regular(mode)}")
        return open(file, "rb", buffering=0)
    except BaseException:
        os.close(file)
        raise


def read_regular(path: Name, most: int) -> bytes:
    """The bytes of a file that has at most so many.

    Raises:
        OSError: it cannot be opened.
        ValueError: a pipe, a device or a directory; or larger, found before it is read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{os.fspath(path)!r}: expected at most {most} bytes, found {size}")
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def read_json(path: Name, most: int = 64 << 20) -> dict[str, Any]:
    """The JSON object in a file of at most so many bytes.

    Raises:
        OSError: it cannot be opened.
        ValueError: as `read_regular`; or it is not a JSON object, or one that is nested too deeply.
    """
    content = read_regular(path, most)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{os.fspath(path)!r}: expected a JSON object, found {type(found).__name__}"
        )
    return found


def machine() -> str:
    """What two processes share if, and only if, a process number means the same to both."""
    names = [platform.node()]
    with suppress(OSError):  # Linux; containers have process numbers of their own
        names += [Path("/proc/sys/kernel/random/boot_id").read_text()]
        names += [os.readlink("/proc/self/ns/pid")]
    return f"{zlib.crc32(' '.join(names).encode()):08x}"


def is_dead(where: str, pid: int) -> bool:
    """Whether a process of the machine is provably gone; False where that cannot be known."""
    if os.name != "posix" or where != machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _not_regular(mode: int) -> str:
    kind = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return f"expected a regular file, found a {kind.get(stat.S_IFMT(mode), 'device')}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
