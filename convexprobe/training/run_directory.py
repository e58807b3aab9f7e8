"""A directory that takes results one checkpoint at a time, so that a kill loses at most one.

| file | content |
|---|---|
| `settings.json` | the settings of the whole run |
| `step_9.safetensors` | the probes of step 9, a file that `load_probes` reads |
| `step_9.logits.safetensors` | their logits, which the next step starts from; two steps are kept |
| `step_9.json` | the entry of step 9; written last: without it nothing counts |

Each JSON file holds a checksum of its own content, and an entry the sizes and checksums of the two
other files of its step. Names of files follow from the step; none is read from a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from convexprobe._files import read_json, read_regular, remove_leftovers, write_whole
from convexprobe._locks import DirectoryLock
from convexprobe.probes.probe_set import ProbeSet, load_probes
from convexprobe.probes.warm_start import Remembered
from convexprobe.training.results import Entry

FORMAT = "convexprobe-history-3"
PROBES, LOGITS = ".safetensors", ".logits.safetensors"
_LOGITS_KEPT = 2  # steps
_MAX_BYTES = 1 << 28  # of a JSON file: a thousand layers of a thousand concepts


def lock_directory(directory: str | os.PathLike[str]) -> DirectoryLock:
    """Make a directory if there is none, and make this process its only writer.

    Raises:
        OSError: it cannot be made or written.
        RuntimeError: it has another writer.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        message = "out: expected a directory, found a file"
        raise NotADirectoryError(errno.ENOTDIR, message, str(path))
    path.mkdir(parents=True, exist_ok=True)
    try:
        return DirectoryLock(path, "probes")
    except RuntimeError as error:
        raise RuntimeError(f"out: {error} (a ProbeMonitor ends with close())") from None


class RunDirectory:
    """The directory; `entries` holds what is complete, by step, in the order of writing.

    Args:
        directory: an existing directory; whoever passes settings has it locked.
        settings: of the run; they must equal those recorded there. None accepts any, and writes
            nothing.
        check: compare the checksums of all files. Sizes are compared in any case, and checksums
            when a file is read. A damaged entry is left out, with a warning.

    Raises:
        ValueError: other settings, naming those that differ; not such a directory.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        settings: Mapping[str, Any] | None = None,
        *,
        check: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.entries: dict[int, Entry] = {}
        self._files: dict[int, dict[str, list[Any]]] = {}  # size and SHA-256, by step and suffix
        path = self.directory / "settings.json"
        if settings is not None:
            remove_leftovers(self.directory)
            if not os.path.lexists(path):
                if stray := sorted(self.directory.glob("step_*.json")):
                    raise ValueError(f"out: {stray[0]} is there, and no {path} to say what it is")
                _write(path, settings, indent=1)
        self.settings = self._settings(path)
        if settings is not None:
            _compare(path, self.settings, settings)
        names = [
            (re.fullmatch(r"step_(0|[1-9][0-9]*)", path.stem), path)
            for path in self.directory.glob("step_*.json")
        ]
        for step, file in sorted((int(name[1]), file) for name, file in names if name):
            try:
                self._read(step, file, check=check)
            except (OSError, ValueError) as error:
                self._leave_out(step, str(error))
        for step, entry in list(self.entries.items()):
            original = self.entries.get(step if entry.duplicate_of is None else entry.duplicate_of)
            has_probes = original is not None and original.duplicate_of is None
            if original is None or not has_probes or original.weights != entry.weights:
                self._leave_out(step, f"step {entry.duplicate_of} does not have its probes")
        with_logits = [s for s in self.entries if self._path(s, LOGITS).exists()]
        self._with_logits = with_logits[-_LOGITS_KEPT:]  # the newest last

    @staticmethod
    def _settings(path: Path) -> dict[str, Any]:
        try:
            return _read_checked(path)
        except (OSError, ValueError) as error:
            ranks = sorted(path.parent.glob("rank_*_of_*/settings.json"))
            hint = f"; the ranks' own are there, such as {str(ranks[0].parent)!r}" if ranks else ""
            raise ValueError(
                f"{str(path)!r}: expected the settings of a history ({FORMAT}): {error}{hint}"
            ) from None

    def _path(self, step: int, suffix: str) -> Path:
        return self.directory / f"step_{step}{suffix}"

    def _leave_out(self, step: int, reason: str) -> None:
        self.entries.pop(step, None)
        self._files.pop(step, None)
        file = self._path(step, ".json")
        message = f"{file}: damaged, its step counts as not done: {reason}"
        warnings.warn(message, UserWarning, stacklevel=4)

    def _read(self, step: int, file: Path, *, check: bool) -> None:
        content = _read_checked(file)
        entry, files = Entry.from_json(content.get("entry")), content.get("files")
        if entry.step != step:
            raise ValueError(f"it is the entry of step {entry.step}")
        expected = {PROBES} if entry.duplicate_of is None else set()
        if not isinstance(files, dict) or files.keys() - {LOGITS} != expected:
            raise ValueError("it lists other files than those of its step")
        for suffix, listed in files.items():
            path = self._path(step, suffix)
            match listed:
                case [int(size), str()] if suffix == PROBES or os.path.lexists(path):
                    if not path.is_file() or path.stat().st_size != size:
                        raise ValueError(f"expected {path.name} of {size} bytes, found another")
                case [int(), str()]:
                    pass  # logits that were deleted because later steps have theirs
                case _:
                    raise ValueError(f"expected size and checksum of {path.name}, found {listed!r}")
        self._files[step] = files
        for suffix in files if check else ():
            if suffix == PROBES or self._path(step, suffix).exists():
                self._content(step, suffix)
        self.entries[step] = entry

    def _content(self, step: int, suffix: str) -> bytes:
        """The content of a file of a step, as it was written."""
        path, (size, sha) = self._path(step, suffix), self._files[step][suffix]
        try:
            content = read_regular(path, size)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha:
            raise ValueError(f"{path}: its checksum is not the one that was recorded")
        return content

    def add(self, entry: Entry, probes: Remembered | ProbeSet | None = None) -> None:
        """Write an entry with its probes, and their logits if there are any; none of a duplicate.

        Raises:
            OSError: the disk is full or cannot be written; every earlier entry is still there.
        """
        step, files = entry.step, {}
        try:
            if probes is not None:
                own = probes.probes if isinstance(probes, Remembered) else probes
                own.save(self._path(step, PROBES))
                files[PROBES] = _seal(self._path(step, PROBES).read_bytes())
            if isinstance(probes, Remembered):
                tensors = {f"{i}": z for i, z in enumerate(probes.logits.values())}
                content = to_bytes({**tensors, "rows": probes.rows})
                write_whole(self._path(step, LOGITS), content)
                files[LOGITS] = _seal(content)
            _write(self._path(step, ".json"), {"entry": entry.to_json(), "files": files})
        except OSError as error:
            message = (
                f"{self.directory}: step {step} could not be written ({error.strerror or error}); "
                f"the {len(self.entries)} entries before are complete, the same command continues"
            )
            raise OSError(error.errno, message) from error
        self.entries[step], self._files[step] = entry, files
        if isinstance(probes, Remembered):
            self._with_logits = [*self._with_logits, step][-_LOGITS_KEPT:]
            for path in self.directory.glob(f"step_*{LOGITS}"):
                if path not in [self._path(s, LOGITS) for s in self._with_logits]:
                    path.unlink(missing_ok=True)

    def remove(self, step: int) -> None:
        """Delete a step.

        Raises:
            OSError: it cannot be deleted.
        """
        for suffix in (".json", PROBES, LOGITS):  # from then on the others do not count
            self._path(step, suffix).unlink(missing_ok=True)
        del self.entries[step], self._files[step]

    def probes(self, step: int) -> ProbeSet:
        """Read the probes of a step that is no duplicate.

        Raises:
            ValueError: the file is missing or damaged.
        """
        self._content(step, PROBES)
        return load_probes(self._path(step, PROBES))

    def remembered(self, step: int) -> Remembered | ProbeSet:
        """Read the probes of a step that is no duplicate, with their logits if kept.

        Raises:
            ValueError: a file is missing or damaged.
        """
        probes = self.probes(step)
        if LOGITS not in self._files[step] or not self._path(step, LOGITS).exists():
            return probes
        try:
            tensors = from_bytes(self._content(step, LOGITS))
            logits = {name: tensors[f"{i}"] for i, name in enumerate(probes)}
            return Remembered(probes, logits, tensors["rows"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self._path(step, LOGITS)}: damaged: {error}") from None


def _seal(content: bytes) -> list[Any]:
    """Size and checksum of a file."""
    return [len(content), hashlib.sha256(content).hexdigest()]


def _write(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write JSON with its format and the checksum of the rest."""
    sha = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    body = {"format": FORMAT, "sha256": sha, **content}
    write_whole(path, json.dumps(body, indent=indent).encode())


def _read_checked(path: Path) -> dict[str, Any]:
    """The content that `_write` got.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged or of another format.
    """
    content = read_json(path, _MAX_BYTES)
    if (found := content.pop("format", None)) != FORMAT:
        raise ValueError(f"expected the format {FORMAT}, found {found!r}")
    sha = content.pop("sha256", None)
    if hashlib.sha256(json.dumps(content).encode()).hexdigest() != sha:
        raise ValueError("its checksum does not fit")
    return content


def _compare(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    differ = [
        f"{key}: recorded {recorded.get(key)!r}, now {wanted.get(key)!r}"
        for key in dict.fromkeys([*recorded, *wanted])
        if recorded.get(key) != wanted.get(key)
    ]
    if differ:
        raise ValueError(
            f"out: {path} records other settings; take another directory, or these: "
            + "; ".join(differ)
        )
