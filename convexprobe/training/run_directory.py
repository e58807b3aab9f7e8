"""A directory that takes results one checkpoint at a time, so that a kill loses at most one.

| file | content |
|---|---|
| `settings.json` | the settings of the whole run |
| `step_9.safetensors` | the probes of step 9, a file that `load_probes` reads |
| `step_9.logits.safetensors` | their logits, which the next step starts from; two steps are kept |
| `step_9.json` | the entry of step 9, with all checksums; written last: without it nothing counts |
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from convexprobe._files import remove_leftovers, write_whole
from convexprobe.probes.probe_set import ProbeSet, load_probes
from convexprobe.probes.warm_start import Remembered
from convexprobe.training.results import Entry, LayerResult

FORMAT = "convexprobe-history-1"
PROBES, LOGITS = ".safetensors", ".logits.safetensors"
_LOGITS_KEPT = 2  # steps


class RunDirectory:
    """The directory; `entries` holds what is complete, by step, in the order of writing.

    Args:
        directory: made if it does not exist.
        settings: of the run; they must equal those recorded there. None accepts any, and writes
            nothing.
        check: read every file and compare its checksum; a damaged entry is left out, with a
            warning, so that its step is done again.

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
        path = self.directory / "settings.json"
        if settings is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.directory)
            if not path.exists():
                if stray := sorted(self.directory.glob("step_*.json")):
                    raise ValueError(f"out: {stray[0]} is there, and no {path} to say what it is")
                write_whole(path, json.dumps({**settings, "format": FORMAT}, indent=1).encode())
        self.settings = self._settings(path)
        if settings is not None:
            _compare(path, self.settings, {**settings, "format": FORMAT})
        records = [(re.fullmatch(r"step_(\d+)", p.stem), p) for p in self.directory.glob("*.json")]
        for step, file in sorted((int(match[1]), file) for match, file in records if match):
            try:
                self._read(step, file, check=check)
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"{file}: damaged, its step is done again ({error})", UserWarning, stacklevel=3
                )
        for step, entry in list(self.entries.items()):
            if entry.duplicate_of is not None and entry.duplicate_of not in self.entries:
                del self.entries[step]  # its probes are those of a damaged entry
        with_logits = [s for s in self.entries if self._path(s, LOGITS).exists()]
        self._with_logits = with_logits[-_LOGITS_KEPT:]  # the newest last

    @staticmethod
    def _settings(path: Path) -> dict[str, Any]:
        try:
            settings = json.loads(path.read_text())
            if settings["format"] == FORMAT:
                return settings
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{str(path)!r}: expected the settings of a history ({FORMAT})")

    def _path(self, step: int, suffix: str) -> Path:
        return self.directory / f"step_{step}{suffix}"

    def _read(self, step: int, file: Path, *, check: bool) -> None:
        content = json.loads(file.read_text())
        if _sum(json.dumps(content["entry"]).encode()) != content["sha256"]:
            raise ValueError("its checksum does not fit")
        values = content["entry"]
        sums = values.pop("files")
        for suffix, sha in sums.items():
            path = self._path(step, suffix)
            if suffix == LOGITS and not path.exists():
                continue  # deleted because later steps have theirs
            if check and _sum(path.read_bytes()) != sha:
                raise ValueError(f"the checksum of {path.name} does not fit")
        layers = tuple(map(LayerResult.from_row, values.pop("layers")))
        self.entries[step] = Entry(**values, layers=layers)

    def add(self, entry: Entry, probes: Remembered | ProbeSet | None = None) -> None:
        """Write an entry with its probes, and their logits if there are any; none of a duplicate.

        Raises:
            OSError: the disk is full or cannot be written; every earlier entry is still there.
        """
        step, sums = entry.step, {}
        try:
            if probes is not None:
                own = probes.probes if isinstance(probes, Remembered) else probes
                own.save(self._path(step, PROBES))
                sums[PROBES] = _sum(self._path(step, PROBES).read_bytes())
            if isinstance(probes, Remembered):
                tensors = {f"{i}": z for i, z in enumerate(probes.logits.values())}
                content = to_bytes({**tensors, "rows": probes.rows})
                write_whole(self._path(step, LOGITS), content)
                sums[LOGITS] = _sum(content)
            values = {
                **vars(entry),
                "layers": [result.to_row() for result in entry.layers],
                "files": sums,
            }
            body = {"entry": values, "sha256": _sum(json.dumps(values).encode())}
            write_whole(self._path(step, ".json"), json.dumps(body, indent=1).encode())
        except OSError as error:
            message = (
                f"{self.directory}: step {step} could not be written ({error.strerror or error}); "
                f"the {len(self.entries)} entries before are complete, the same command continues"
            )
            raise OSError(error.errno, message) from error
        self.entries[step] = entry
        if isinstance(probes, Remembered):
            self._with_logits = [*self._with_logits, step][-_LOGITS_KEPT:]
            for path in self.directory.glob(f"step_*{LOGITS}"):
                if path not in [self._path(s, LOGITS) for s in self._with_logits]:
                    path.unlink(missing_ok=True)

    def probes(self, step: int) -> ProbeSet:
        """Read the probes of a step that is no duplicate."""
        return load_probes(self._path(step, PROBES))

    def remembered(self, step: int) -> Remembered | ProbeSet:
        """Read the probes of a step that is no duplicate, with their logits if kept."""
        probes, path = self.probes(step), self._path(step, LOGITS)
        if not path.exists():
            return probes
        tensors = load_file(path)
        logits = {name: tensors[f"{i}"] for i, name in enumerate(probes)}
        return Remembered(probes, logits, tensors["rows"])


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


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
