"""The file of a set of probes: safetensors, with a checksum of every byte of it.

The checksum stands in the header's metadata, as 64 zeros while it is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from convexprobe._arguments import check_path, shown
from convexprobe._files import open_regular, remove_leftovers, write_whole
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.probe import PathPoint, Probe
from convexprobe.solvers.solution import Status

FORMAT = "convexprobe-3"

_SUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')  # in a name the quotes would be escaped
_ERRORS = (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError)

_NO_NUMBERS = {"weights", "bias", "classes", "concept", "path", "validation_errors", "scale"}
"""The fields of a probe that are not one value."""

_HEADER = 100_000_000
"""Bytes of a header at most, as safetensors has it."""


def write_probes(path: str | os.PathLike[str], probes: Mapping[str, Probe]) -> None:
    """Write a file that appears complete or not at all.

    Raises:
        TypeError: a class other than str, int, float, bool and None.
        ValueError: a probe whose fields do not fit together.
        OSError: the file cannot be written; one that was there stays.
    """
    target = check_path("path", path)
    tensors: dict[str, np.ndarray] = {}
    entries = []
    for i, (name, probe) in enumerate(probes.items()):
        _check(name, probe)
        for field in _arrays(probe.scale is not None):
            # safetensors writes the raw buffer, so anything not in C order would be scrambled.
            tensors[f"{i}.{field}"] = np.ascontiguousarray(to_numpy(getattr(probe, field)))
        entry = asdict(replace(probe, weights=None, bias=None, scale=None))
        entry["scale"] = probe.scale is not None
        for item in (entry, *entry["path"]):
            item["status"] = item["status"].name
        entries.append({"layer": name, **entry})
    metadata = {"format": FORMAT, "probes": json.dumps(entries), "sha256": "0" * 64}
    content = to_bytes(tensors, metadata)
    digest = hashlib.sha256(content).hexdigest()
    remove_leftovers(Path(os.path.realpath(target)).parent)  # of a save that was killed
    write_whole(target, _SUM.sub(f'"sha256":"{digest}"'.encode(), content, count=1))


def read_probes(path: str | os.PathLike[str]) -> dict[str, Probe]:
    """Read what `write_probes` wrote, with NumPy arrays. No pickle is read.

    Raises:
        OSError: the file cannot be opened (FileNotFoundError: there is none).
        ValueError: not a regular file, another file, or a damaged one.
    """
    source = check_path("path", path)
    with open_regular(source) as file:
        try:
            _check_sum(file)
            with safe_open(source, framework="numpy") as content:
                metadata = content.metadata()
                if metadata["format"] != FORMAT:
                    raise ValueError(f"expected the format {FORMAT}, found {metadata['format']!r}")
                entries = json.loads(metadata["probes"])
                names = {f"{i}.{f}" for i, e in enumerate(entries) for f in _arrays(e["scale"])}
                if set(content.keys()) != names:
                    raise ValueError(f"expected arrays of {len(entries)} probes")
                probes = [_probe(i, entry, content) for i, entry in enumerate(entries)]
                if len(dict(probes)) < len(probes):
                    raise ValueError("a layer's name stands there twice")
                return dict(probes)
        except _ERRORS as error:
            where = repr(os.fspath(path))
            raise ValueError(f"{where}: not a file of probes, or damaged: {error}") from None


def _arrays(scaled: bool) -> tuple[str, ...]:
    """The names of a probe's arrays."""
    return ("weights", "bias", "scale") if scaled else ("weights", "bias")


def _check_sum(file: BinaryIO) -> None:
    """Refuse a file that is not what was written; reads all of it, a MiB at a time."""
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(start, "little")
    if length > min(size - 8, _HEADER):
        raise ValueError(f"its header has {length} bytes, in a file of {size}")
    header = b"".join(iter(lambda: file.read(min(1 << 20, 8 + length - file.tell())), b""))
    found = _SUM.search(header)
    if found is None:
        raise ValueError("it has no checksum")
    sha = hashlib.sha256(start + header.replace(found[1], b"0" * 64, 1))
    for chunk in iter(lambda: file.read(1 << 20), b""):
        sha.update(chunk)
    if sha.hexdigest() != found[1].decode():
        raise ValueError("its checksum is another one")


def _probe(i: int, entry: dict[str, Any], content: Any) -> tuple[str, Probe]:
    """The name and the probe of an entry."""
    name = entry.pop("layer")
    if not isinstance(name, str):
        raise ValueError(f"expected a layer's name, found {shown(name)}")
    for item in (entry, *entry["path"]):
        item["status"] = Status[item["status"]]
    arrays = {}
    for field in _arrays(entry.pop("scale")):
        if content.get_slice(f"{i}.{field}").get_dtype() not in ("F32", "F64"):
            raise ValueError(f"layer {name!r}: expected {field} in float32 or float64")
        arrays[field] = content.get_tensor(f"{i}.{field}")
    path = tuple(PathPoint(**point) for point in entry["path"])
    lists = {name: tuple(entry[name]) for name in ("classes", "validation_errors")}
    probe = Probe(**{**entry, **arrays, **lists, "path": path})
    _check(name, probe)
    return name, probe


def _check(name: str, probe: Probe) -> None:
    """Refuse a probe whose fields do not fit together."""
    for c in probe.classes:
        if not isinstance(c, (str, int, float, bool, type(None))) or c != c:
            raise TypeError(f"layer {name!r}: class {c!r} cannot be saved; use str or int")
    k, weights, bias = len(probe.classes), to_numpy(probe.weights), to_numpy(probe.bias)
    if k < 2 or len(set(probe.classes)) < k:
        raise ValueError(f"layer {name!r}: expected distinct classes, found {probe.classes!r}")
    if weights.ndim != 2 or weights.shape[0] != k or bias.shape != (k,):
        raise ValueError(
            f"layer {name!r}: expected weights and biases of {k} classes, found shapes "
            f"{weights.shape} and {bias.shape}"
        )
    if not (np.isfinite(weights).all() and (np.isfinite(bias) | np.isneginf(bias)).all()):
        raise ValueError(f"layer {name!r}: expected weights and biases that are finite")
    if not isinstance(probe.concept, str | None):
        raise ValueError(f"layer {name!r}: concept: found {shown(probe.concept)}")
    for value in probe.validation_errors:
        if not isinstance(value, Real) or isinstance(value, bool) or value != value:
            raise ValueError(f"layer {name!r}: validation_errors: found {shown(value)}")
    if probe.scale is not None:
        scale = to_numpy(probe.scale)
        if scale.shape != weights.shape[1:] or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"layer {name!r}: expected a positive scale of every feature")
    items: list[Probe | PathPoint] = [probe, *probe.path]
    for item in items:
        for field in {f.name for f in fields(item)} - _NO_NUMBERS:
            value = getattr(item, field)
            kind = {"status": Status, "start": str}.get(field, Real)
            good = isinstance(value, kind) and not isinstance(value, bool) and value == value
            if not good and not (item is probe and field == "validation_error" and value is None):
                raise ValueError(f"layer {name!r}: {field}: found {shown(value)}")
