"""One writer a directory: a lock that ends with its process."""

from __future__ import annotations

import errno
import json
import os
import platform
import weakref
from contextlib import suppress
from pathlib import Path

from convexprobe._files import PREFIX, Name, is_dead, machine

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]  # a name for "no locks", asked for before use

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""What `flock` reports on a file system that has no locks."""


class DirectoryLock:
    """Makes this process the only writer of a directory, until `close()` or the process ends.

    The kernel holds the lock (`flock` on a file in the directory): a killed process holds none,
    and a forked child neither holds nor ends its parent's. On a file system without `flock` the
    existence of that file is the lock, until its writer is seen to be dead on this machine.

    Args:
        directory: an existing directory.
        what: what is written there, for the error of the next writer, like "activations".

    Raises:
        RuntimeError: it has a writer, perhaps in this process; the message names process and host,
            unless the writer is just about to write them down.
        OSError: the directory is missing or cannot be written.
    """

    def __init__(self, directory: Name, what: str) -> None:
        path = Path(directory) / f"{PREFIX}.lock"
        while (file := _lock(path)) is None:
            pass
        _held.add(file)
        self._release = weakref.finalize(self, _unlock, path, file, os.getpid())
        holder = {"pid": os.getpid(), "host": platform.node(), "machine": machine(), "what": what}
        os.ftruncate(file, 0)
        os.write(file, json.dumps(holder).encode())

    def close(self) -> None:
        """Let others write there; a second call does nothing."""
        self._release()

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_held: set[int] = set()
"""Descriptors of the lock files that this process holds."""


def _lock(path: Path) -> int | None:
    """A descriptor of the lock file, with the lock; None if its last holder has just deleted it."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        file, created = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        try:
            file, created = os.open(path, flags), False
        except FileNotFoundError:
            return None
    ours = False
    try:
        if _flock(path, file):
            ours = os.path.samestat(os.fstat(file), path.stat())
        elif created:
            ours = True
        elif is_dead(*_holder(file)[:2]):
            path.unlink()
        else:
            raise _refusal(path, file, f"; if no process does, delete {os.fspath(path)!r}")
    except FileNotFoundError:
        pass
    finally:
        if not ours:
            os.close(file)
    return file if ours else None


def _flock(path: Path, file: int) -> bool:
    """Lock the file, or refuse; False where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(path, file) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _holder(file: int) -> tuple[str, int, str]:
    """The machine and process of a lock's holder, and a sentence; unknown while it is written."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        pid, host, what = int(holder["pid"]), str(holder["host"]), str(holder["what"])
        return str(holder["machine"]), pid, f"process {pid} on {host} writes {what} there"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", 0, "another process writes there"


def _refusal(path: Path, file: int, more: str = "") -> RuntimeError:
    return RuntimeError(
        f"{os.fspath(path.parent)!r}: {_holder(file)[2]}; let it finish, stop it, or choose "
        f"another directory{more}"
    )


def _unlock(path: Path, file: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has closed its copy
        _held.discard(file)
        with suppress(OSError):
            if os.path.samestat(os.fstat(file), path.stat()):  # the directory may have moved
                path.unlink()  # before the lock ends: nobody else can have it
        os.close(file)


def _leave_to_the_parent() -> None:
    """In a forked child: hold none of the locks, so that they end with the parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
