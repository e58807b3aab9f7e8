"""Kill what writes at random instants, and check what is left: `extract`, sweeps and `save`.

    python -m tests.kills [--kills 100] [--seed 0]

Not in the suite: it takes a minute. One process imports; its children write, say through a pipe how
far they are, and get SIGKILL. What they leave must be whole and must have all that was done but the
step under way; the next child goes on from it, to the bits of a run that nobody kills.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

import convexprobe as cxp
from convexprobe._files import is_bookkeeping
from convexprobe.activations.manifest import MANIFEST
from tests.extraction.small import Interrupted, Left, batches, extract_to, network
from tests.probes.sets import small_set
from tests.tiny import bits, checkpoints, sweep

KILLED = -signal.SIGKILL
Say = Callable[[bytes], object]


def prepare() -> None:
    """Make this process safe to fork, and warnings errors: a torn file would be one."""
    torch.set_num_threads(1)
    # its lock is one for all forked processes: a child killed with it would stop the others
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # nor may a thread of this process hold it at a fork
    warnings.simplefilter("error")


def fork(job: Callable[[], object]) -> int:
    """The number of a child that runs `job` and ends with 0, or with 1 after an error."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        job()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Wait for a child; its exit code, or less the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Writer(ABC):
    """What is killed over and over, and started again on what is left, until it ends by itself."""

    name: str

    @abstractmethod
    def write(self, out: Path, say: Say) -> None:
        """In a child: write below `out`, and `say` bytes that tell how far it is."""

    @abstractmethod
    def check(self, out: Path, said: bytes, before: Any) -> Any:
        """Assert that what is left is whole and has what the child said was done. Gives what is
        there, which the next call gets as `before`: None in the first."""

    @abstractmethod
    def check_end(self, out: Path, said: list[bytes]) -> None:
        """Assert that all is there at the end, and how little was done again, of what the children
        said in turn."""


class Extraction(Writer):
    """Nine batches in blocks of two: a block is lost at most. "b" says that a batch is stored or in
    the block under way, "f" that one runs through the network."""

    name = "extract(out=)"

    def __init__(self) -> None:
        self.layers, labels = cxp.extract(Interrupted(network(), 99), batches())
        assert labels is not None
        self.labels = labels

    def write(self, out: Path, say: Say) -> None:
        def loader() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches():
                yield batch
                say(b"b")

        Forwards.say = say
        model = Interrupted(network(), 99)
        model.left = Forwards()
        extract_to(out, model, loader())

    def check(self, out: Path, said: bytes, before: Any) -> int:
        stored = 0
        if not (out / MANIFEST).exists():
            assert not said.count(b"b") and not before
            return 0
        with suppress(ValueError):  # no row yet
            stored = self._compare(out)
        assert stored >= max(said.count(b"b") // 2 * 14, before or 0)
        return stored

    def check_end(self, out: Path, said: list[bytes]) -> None:
        assert self._compare(out) == len(self.labels)
        cxp.open_activations(out)  # it is complete
        assert b"".join(said).count(b"f") <= 9 + 2 * (len(said) - 1)

    def _compare(self, out: Path) -> int:
        """How many rows there are; they are the first of all, to the bit."""
        rows, labels = cxp.open_activations(out, partial=True)
        assert labels is not None and torch.equal(labels, self.labels[: len(labels)])
        for name, expected in self.layers.items():
            assert torch.equal(rows[name].load(), expected[: len(labels)]), name
        return len(labels)


class Forwards(Left):
    """Counts forward passes of `Interrupted` by saying them."""

    say: ClassVar[Say]

    def __init__(self) -> None:
        pass

    @property
    def calls(self) -> int:
        return 99

    @calls.setter
    def calls(self, value: int) -> None:
        Forwards.say(b"f")


class Sweep(Writer):
    """Five checkpoints: one is lost at most. "d" says that one is recorded."""

    name = "probe_checkpoints(out=)"

    def __init__(self) -> None:
        self.steps = checkpoints(5)
        self.settings: dict[str, Any] = {"layers": ["0", "4"], "test": None}
        self.whole = bits(sweep(self.steps, **self.settings))

    def write(self, out: Path, say: Say) -> None:
        def states() -> Iterator[tuple[int, Any]]:
            for step, state in self.steps:
                yield step, state
                say(b"d")

        assert bits(sweep(states(), out=out, **self.settings)) == self.whole

    def check(self, out: Path, said: bytes, before: Any) -> int:
        if not (out / "settings.json").exists():
            assert not said and not before
            return 0
        found = cxp.load_history(out)
        done = len(found.entries)
        assert done >= max(said.count(b"d"), before or 0)
        first = {step for step, _ in self.steps[:done]}
        step_of = (key if isinstance(key, int) else key[0] for key in self.whole)
        expected = {key for key, step in zip(self.whole, step_of, strict=True) if step in first}
        assert bits(found) == {key: self.whole[key] for key in expected}
        return done

    def check_end(self, out: Path, said: list[bytes]) -> None:
        assert bits(cxp.load_history(out)) == self.whole


class Save(Writer):
    """Two sets of probes that are saved over each other in turn. "s" says that a save begins."""

    name = "ProbeSet.save"
    SAVES = 12

    def __init__(self) -> None:
        one = small_set()
        self.sets = [one, one | cxp.ProbeSet({"more": one["plain"]})]

    def write(self, out: Path, say: Say) -> None:
        out.mkdir(exist_ok=True)
        for i in range(self.SAVES):
            say(b"s")
            self.sets[i % 2].save(out / "probes.safetensors")
            say(b"d")

    def check(self, out: Path, said: bytes, before: Any) -> bool:
        if not (path := out / "probes.safetensors").exists():
            assert not said.count(b"d") and not before
            return False
        names = list(cxp.load_probes(path))  # its checksum fits
        saved = said.count(b"d")
        allowed = {(i - 1) % 2 for i in (saved, said.count(b"s")) if i}  # the last, or the next
        allowed |= {0, 1} if before and not saved else set()
        assert names in [list(self.sets[i]) for i in allowed]
        return True

    def check_end(self, out: Path, said: list[bytes]) -> None:
        self.check(out, said[-1], True)


def kill(writer: Writer, folder: Path, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Kill a writer so many times; how many runs there were from an empty place to the end, how
    many kills came in the middle of one, and how many temporary files they left.

    Raises:
        AssertionError: something was torn, lost or done again.
    """
    seconds = []
    for trial in ("first", "second"):
        started = time.perf_counter()
        assert end(fork(partial(writer.write, folder / trial, len))) == 0
        seconds.append(time.perf_counter() - started)
    whole = min(seconds)
    runs = killed = leftovers = 0
    while killed < kills:
        out, said, left, code = folder / f"run_{runs}", list[bytes](), None, KILLED
        temporary: set[str] = set()
        while code != 0:
            reader, pipe = os.pipe()
            pid = fork(partial(writer.write, out, partial(os.write, pipe)))
            os.close(pipe)
            if killed < kills:
                time.sleep(rng.uniform(0.0, whole))
                os.kill(pid, signal.SIGKILL)
            code = end(pid)
            with open(reader, "rb") as heard:
                said.append(heard.read())
            assert code in (0, KILLED), f"{writer.name}: a child ended with {code}"
            if code:
                killed += 1
                there = {p.name for p in out.glob(".*.tmp*") if is_bookkeeping(p)}
                leftovers, temporary = leftovers + len(there - temporary), there
                left = writer.check(out, said[-1], left)
        writer.check_end(out, said)
        assert not list(out.glob(".*")), "what killed writers left is there still"
        runs += 1
    return runs, killed, leftovers


def main() -> None:
    """Print what was killed, and how often; an assertion fails where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills of each writer")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    settings = parser.parse_args()
    prepare()
    rng = random.Random(settings.seed)
    print("| writer | kills | runs | temporary files left by a kill | torn | lost |")
    print("|---|---|---|---|---|---|")
    for kind in (Extraction, Sweep, Save):
        with tempfile.TemporaryDirectory() as folder:
            runs, killed, leftovers = kill(kind(), Path(folder), settings.kills, rng)
        print(f"| {kind.name} | {killed} | {runs} | {leftovers} | 0 | 0 |", flush=True)


if __name__ == "__main__":
    main()
