"""What is damaged or forged in a directory of activations is one clear error, soon and small."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import convexprobe as cxp
from convexprobe.activations.manifest import MANIFEST
from tests.storage import write_activations

LAYERS = {"a": torch.arange(60.0).reshape(20, 3), "b": torch.ones(20, 2, dtype=torch.bfloat16)}
LABELS = torch.arange(20) % 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers and labels in two blocks."""
    path = tmp_path_factory.mktemp("whole")
    write_activations(path, LAYERS, LABELS, rows=12)
    return path


def read(directory: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """All that is there; the one error that damage may be, within bounds of memory."""
    rows, labels = cxp.open_activations(directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert sum(stored.nbytes for stored in rows.values()) < size
    gathered = {name: stored.gather(np.arange(stored.shape[0])) for name, stored in rows.items()}
    loaded = {name: stored.load() for name, stored in rows.items()}
    for name, values in loaded.items():
        torch.testing.assert_close(gathered[name], values, rtol=0, atol=0, equal_nan=True)
    return loaded, labels


def damaged(whole: Path, damage: Callable[[Path], None]) -> tuple[dict[str, Tensor], Any] | None:
    """What a copy gives after the damage; None if it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(whole, Path(folder, "copy")))
        damage(copy)
        try:
            return read(copy)
        except (ValueError, FileNotFoundError) as error:
            assert str(copy) in str(error) and "\n" not in str(error)
            return None


FILES = ["00000.safetensors", "00001.safetensors", MANIFEST]
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 0.999), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.floats(0, 0.999), st.just(0)),
    st.tuples(st.just("replace"), st.floats(0, 0.999), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("delete"), st.just(0.0), st.just(0)),
    st.tuples(st.just("other file"), st.just(0.0), st.sampled_from(FILES)),
)


@given(file=st.sampled_from(FILES), damage=DAMAGE)
@settings(max_examples=300)
def test_whatever_happens_to_a_file_the_rows_are_those_written_or_none(
    whole: Path, file: str, damage: tuple[str, float, Any]
) -> None:
    kind, where, what = damage

    def spoil(directory: Path) -> None:
        path = directory / file
        data = bytearray(path.read_bytes())
        at = int(where * len(data))
        if kind == "flip":
            data[at] ^= 1 << what
        elif kind == "cut":
            del data[at:]
        elif kind == "replace":
            data[at : at + len(what)] = what[: len(data) - at]
        elif kind == "insert":
            data[at:at] = what
        elif kind == "other file":
            data[:] = (directory / what).read_bytes()
        path.unlink() if kind == "delete" else path.write_bytes(data)

    found = damaged(whole, spoil)
    if found is not None:  # a changed byte that means nothing, like a space in a header
        rows, labels = found
        assert list(rows) == list(LAYERS) and torch.equal(labels, LABELS)
        assert all(torch.equal(rows[name], LAYERS[name]) for name in rows)


DEEP = "a list in a list in a list, and so on"


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 7, 2**31, 2**70, 1.5, 1e308, "", "../a", [], {}, [[]]]),
    st.sampled_from([float("nan"), float("inf"), DEEP]),
    st.text(max_size=3),
    st.integers(),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    inside: Any = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    return [way for k, v in inside for way in ((*path, k), *places(v, (*path, k)))]


def forge(content: Any, place: float, new: Any, remove: bool) -> None:
    """Replace or remove one value of all that are inside."""
    *way, last = places(content)[int(place * len(places(content)))]
    for key in way:
        content = content[key]
    if remove:
        del content[last]
    else:
        content[last] = deep(800) if new == DEEP else new


EDIT: dict[str, Any] = {"place": st.floats(0, 0.999), "new": HOSTILE, "remove": st.booleans()}


@given(**EDIT)
@settings(max_examples=200)
def test_a_forged_manifest_is_refused_or_harmless(
    whole: Path, place: float, new: Any, remove: bool
) -> None:
    def spoil(directory: Path) -> None:
        path = directory / MANIFEST
        content = json.loads(path.read_text())
        del content["crc32"]
        forge(content, place, new, remove)
        content["crc32"] = zlib.crc32(json.dumps(content).encode())  # a forger computes it too
        path.write_text(json.dumps(content))

    if (found := damaged(whole, spoil)) is not None:
        rows, labels = found
        assert labels is not None and len(labels) in (12, 20)  # the last block may be left out
        assert {tuple(x.shape) for x in rows.values()} == {(len(labels), 3), (len(labels), 2)}


@given(**EDIT)
@example(place=0.1, new=DEEP, remove=False)
@settings(max_examples=150)
def test_a_forged_header_is_refused_or_harmless(
    whole: Path, place: float, new: Any, remove: bool
) -> None:
    def spoil(directory: Path) -> None:
        path = directory / "00000.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        forge(header, place, new, remove)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        manifest = json.loads((directory / MANIFEST).read_text())
        del manifest["crc32"]
        manifest["blocks"][0]["bytes"] = path.stat().st_size
        manifest["crc32"] = zlib.crc32(json.dumps(manifest).encode())
        (directory / MANIFEST).write_text(json.dumps(manifest))

    if (found := damaged(whole, spoil)) is not None:
        rows, labels = found
        assert torch.equal(labels, LABELS)
        assert all(torch.equal(rows[name], LAYERS[name]) for name in rows)


@pytest.mark.parametrize("length", [0, 2**30, 2**63, 2**64 - 1])
def test_a_header_that_would_be_huge_is_not_read(whole: Path, length: int) -> None:
    def spoil(directory: Path) -> None:
        path = directory / "00000.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])

    assert damaged(whole, spoil) is None


def test_a_sparse_file_takes_no_memory(whole: Path) -> None:
    """Manifest, header and size of the file agree on 64 million rows of zeros."""
    resource = pytest.importorskip("resource")

    def spoil(directory: Path) -> None:
        path, rows = directory / "00000.safetensors", 1 << 26
        sizes = {"labels": 8, "activations/a": 12, "activations/b": 4}
        header, at = {}, 0
        for key, size in sizes.items():
            kind = {"labels": "I64", "activations/a": "F32"}.get(key, "BF16")
            shape = [rows] if key == "labels" else [rows, size // (4 if kind == "F32" else 2)]
            header[key] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + rows * size]}
            at += rows * size
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + at)
        manifest = json.loads((directory / MANIFEST).read_text())
        del manifest["crc32"]
        manifest["blocks"][0] |= {"bytes": path.stat().st_size, "rows": rows}
        manifest["crc32"] = zlib.crc32(json.dumps(manifest).encode())
        (directory / MANIFEST).write_text(json.dumps(manifest))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert damaged(whole, spoil) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(
    whole: Path, file: str, kind: str
) -> None:
    def spoil(directory: Path) -> None:
        path = directory / file
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    assert damaged(whole, spoil) is None
    with tempfile.TemporaryDirectory() as folder:  # after it was opened, too
        copy = Path(shutil.copytree(whole, Path(folder, "copy")))
        rows, _ = cxp.open_activations(copy)
        spoil(copy)
        if file != MANIFEST:
            with pytest.raises(
                ValueError, match=f"{file}': expected a regular file, found a {kind}"
            ):
                rows["a"].load()


def test_rows_are_checked_before_they_are_gathered(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    rows, _ = cxp.open_activations(copy)
    data = bytearray((copy / "00001.safetensors").read_bytes())
    data[-1] ^= 1  # of the last row of one of the layers
    (copy / "00001.safetensors").write_bytes(data)
    assert torch.equal(rows["a"].gather(np.array([3])), LAYERS["a"][3:4])
    refused = 0
    for stored in rows.values():
        try:
            stored.gather(np.array([13]))
        except ValueError as error:
            refused += "00001.safetensors': torn or changed" in str(error)
    assert refused == 1


@pytest.mark.parametrize("directory", [5, None, ["a"]])
def test_a_directory_that_is_no_path_is_named(directory: Any) -> None:
    with pytest.raises(TypeError, match=r"directory: expected a path, found "):
        cxp.open_activations(directory)
    with pytest.raises(TypeError, match=r"partial: expected True or False, found 'no' \(str\)"):
        cxp.open_activations("a", partial="no")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no activations here"):
        cxp.open_activations(__file__)
