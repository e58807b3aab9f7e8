"""Processes of their own, forked from a server that has imported the libraries once.

A process that starts from nothing imports for some seconds. What these share with each other is
what an import leaves behind; what a test did in this process they have not.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

LIBRARIES = [
    "array_api_strict", "convexprobe", "hypothesis", "matplotlib.pyplot", "pytest",
    "scipy.optimize", "sklearn.datasets", "sklearn.linear_model", "torch.distributed", "tqdm",
]  # fmt: skip
"""What most of the processes import; the rest they import themselves."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


def start(function: Callable[..., None], *args: Any) -> ForkServerProcess:
    """Start a process that calls the function, of a module's top level."""
    process = SERVER.Process(target=function, args=args)
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 600.0) -> int:
    """Wait for a process, and kill it if it hangs; its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return int(process.exitcode or 0)


def run_script(path: Path, *argv: str, cwd: Path) -> str:
    """What a script prints that runs as by `python -W error path *argv` in the folder `cwd`.

    Fails if the script does. Of pytest's variables, it sees none.
    """
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        code = end(start(_as_main, path, argv, cwd, stdout, stderr))
        said = stdout.read_text()
        assert code == 0, said[-20_000:] + stderr.read_text()
        return said


def _as_main(path: Path, argv: tuple[str, ...], cwd: Path, stdout: Path, stderr: Path) -> None:
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    sys.argv = [str(path), *argv]
    rest = (p for p in sys.path if p and Path(p).resolve() != ROOT)  # not for a script to see
    sys.path[:] = [str(path.parent), *rest]
    warnings.simplefilter("error")
    runpy.run_path(str(path), run_name="__main__")
