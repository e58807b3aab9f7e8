"""Sets of probes in files: every field survives, and a file that is none is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as to_bytes

import convexprobe._files
from convexprobe import PathPoint, Probe, ProbeSet, Status, fit_probes, load_probes, remember
from convexprobe._files import machine
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.probe_file import FORMAT
from tests.probes.sets import DATA, small_set


def assert_same(a: ProbeSet, b: ProbeSet) -> None:
    assert list(a) == list(b)
    for name in a:
        for field in fields(Probe):
            left, right = getattr(a[name], field.name), getattr(b[name], field.name)
            if field.name in ("weights", "bias"):
                left, right = to_numpy(left), to_numpy(right)
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right and type(left) is type(right), field.name


def test_every_field_survives_a_file(tmp_path: Path, library: ModuleType) -> None:
    probes = small_set()
    first = probes["conv1"]
    odd = replace(
        first,
        weights=library.asarray(first.weights),
        bias=library.asarray(np.array([-np.inf, 0.1, 1e-300])),
        classes=("ä", 2, None),
        gap=float("inf"),
        l2=0.1 + 0.2,
        status=Status.SEPARABLE,
        path=(
            PathPoint(
                l2=1e-6,
                loss=0.5,
                objective=0.6,
                gap=float("inf"),
                label_entropy=0.7,
                train_error=0.1,
                status=Status.ROUNDING,
                passes=3.0,
                seconds=0.1,
                validation_error=0.25,
                validation_loss=float("inf"),
            ),
        ),
    )
    probes = probes | {"größe 'x'\n": odd, "": replace(odd, classes=(True, False, 1.5))}
    probes.save(tmp_path / "probes.safetensors")
    loaded = load_probes(str(tmp_path / "probes.safetensors"))
    assert_same(probes, loaded)
    assert str(loaded) == str(probes)
    ProbeSet({}).save(tmp_path / "empty")
    assert len(load_probes(tmp_path / "empty")) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "probes.safetensors"]


def test_arrays_that_are_not_contiguous_survive_a_file(tmp_path: Path) -> None:
    first = fit_probes(DATA.x, DATA.y, l2=0.1)["activations"]
    values = np.arange(18.0).reshape(3, 6)
    forms: list[Any] = [
        np.asfortranarray(values),
        np.repeat(values, 2, axis=1)[:, ::2],
        np.ascontiguousarray(values[::-1])[::-1],
        torch.tensor(values.T.copy()).T,
        values.astype(">f8"),
    ]
    for form in forms:
        ProbeSet({"a": replace(first, weights=form)}).save(tmp_path / "p")
        np.testing.assert_array_equal(load_probes(tmp_path / "p")["a"].weights, values)


def test_a_file_may_be_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probes = fit_probes(DATA.x, DATA.y, l2=0.1)
    probes.save("p")
    assert_same(load_probes("p"), probes)


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_failing_save_leaves_the_old_file(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = fit_probes(DATA.x, DATA.y, l2=0.1)
    probes.save(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()

    def half_written(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    def no_rename(*args: Any) -> None:
        raise OSError("disk full")

    if moment == "write":
        monkeypatch.setattr(Path, "write_bytes", half_written)
    else:
        monkeypatch.setattr(convexprobe._files.os, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        small_set().save(tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_classes_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    probes = fit_probes({"fc1": DATA.x}, [("cat", int(c)) for c in DATA.y], l2=0.1)
    with pytest.raises(TypeError, match=r"layer 'fc1'.*\('cat', 0\).*str or int"):
        probes.save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_probes(tmp_path / "absent")


class Boom:
    """Would fail the test if a pickle of it were read."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


def test_other_files_are_refused_and_no_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p"
    torch_like = pickle.dumps(Boom())
    for content in (b"", b"\x00" * 64, b"{}", torch_like, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="p'"):
            load_probes(path)
    for meta in (None, {"format": "convexprobe-1", "probes": "[]"}):
        save_file({"a": np.zeros(2)}, path, meta)
        with pytest.raises(ValueError, match="not a file of probes"):
            load_probes(path)


def written(folder: Path) -> bytes:
    """The bytes of a file of two probes, one with a path."""
    probes = {name: small_set()[name] for name in ("conv1", "plain")}
    ProbeSet(probes).save(folder / "written")
    return (folder / "written").read_bytes()


def sealed(content: bytes) -> bytes:
    """The content with the checksum that it ought to have."""
    blank = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', content)
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1)


def test_every_damage_is_refused(tmp_path: Path) -> None:
    """Truncations, appended bytes and changed bytes, anywhere in the file."""
    content, path = written(tmp_path), tmp_path / "p"
    rng = np.random.default_rng(0)
    damaged = [content[:length] for length in range(0, len(content), 97)] + [content + b"0"]
    for position in [*range(64), *rng.integers(0, len(content), 400).tolist()]:
        other = bytearray(content)
        other[position] ^= int(rng.integers(1, 256))
        damaged.append(bytes(other))
    for other in damaged:
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"p': not a file of probes, or damaged: "):
            load_probes(path)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=2),
    st.lists(st.integers(0, 1), max_size=3), st.just({}), st.just([[]] * 3),
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_metadata_is_refused_or_still_a_whole_set(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Sealed again: what a forger writes, or a program with a fault."""
    path = tmp_path / "p"
    if not path.exists():
        path.write_bytes(written(tmp_path))
    with safe_open(tmp_path / "written", framework="numpy") as file:
        entries = json.loads(file.metadata()["probes"])
    tensors = load_file(tmp_path / "written")
    target: Any = entries
    while isinstance(target, (dict, list)) and target:
        parent = target
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict)
                                        else range(len(parent))))  # fmt: skip
        target = parent[key]
        if data.draw(st.booleans()):
            break
    if data.draw(st.booleans()):
        parent[key] = data.draw(JUNK)
    else:
        del parent[key]
    meta = {"format": FORMAT, "probes": json.dumps(entries), "sha256": "0" * 64}
    path.write_bytes(sealed(to_bytes(tensors, meta)))
    try:
        probes = load_probes(path)
    except ValueError as error:
        assert "not a file of probes, or damaged" in str(error)
        return
    assert str(probes)
    for probe in probes.values():
        rows = np.ones((2, probe.weights.shape[1]))
        assert len(probe.predict(rows)) == 2 and np.isfinite(probe.predict_proba(rows)).all()


ARRAYS = {
    "another number of classes": {"0.weights": np.zeros((4, 6))},
    "a vector of weights": {"0.weights": np.zeros(3)},
    "integers": {"0.weights": np.zeros((3, 6), np.int64)},
    "half precision": {"0.bias": np.zeros(3, np.float16)},
    "NaN": {"0.weights": np.full((3, 6), np.nan)},
    "an infinite bias": {"0.bias": np.array([0.0, np.inf, 0.0])},
    "another array": {"more": np.zeros(3)},
    "no array": {"0.bias": None},
}


@pytest.mark.parametrize("change", ARRAYS)
def test_arrays_that_do_not_fit_the_metadata_are_refused(change: str, tmp_path: Path) -> None:
    written(tmp_path)
    with safe_open(tmp_path / "written", framework="numpy") as file:
        meta = {**file.metadata(), "sha256": "0" * 64}
    tensors = {**load_file(tmp_path / "written"), **ARRAYS[change]}
    kept = {name: array for name, array in tensors.items() if array is not None}
    (tmp_path / "p").write_bytes(sealed(to_bytes(kept, meta)))
    with pytest.raises(ValueError, match="not a file of probes, or damaged"):
        load_probes(tmp_path / "p")


@pytest.mark.parametrize("probes", ["[1]", "3", "null", '[{"layer": "a"}]', "[[]]", "[" * 9999])
def test_metadata_of_another_form_are_refused(probes: str, tmp_path: Path) -> None:
    meta = {"format": FORMAT, "probes": probes, "sha256": "0" * 64}
    (tmp_path / "p").write_bytes(sealed(to_bytes({"a": np.zeros(2)}, meta)))
    with pytest.raises(ValueError, match="not a file of probes, or damaged"):
        load_probes(tmp_path / "p")


def test_two_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    content = written(tmp_path).replace(b"conv1", b"plain")
    (tmp_path / "p").write_bytes(sealed(content))
    with pytest.raises(ValueError, match="twice"):
        load_probes(tmp_path / "p")


def test_a_probe_that_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    first = small_set()["conv1"]
    for change in ({"weights": first.weights * np.nan}, {"bias": first.bias[:2]}, {"loss": np.nan},
                   {"classes": (0, 1)}):  # fmt: skip
        with pytest.raises(ValueError, match="layer 'a'"):
            ProbeSet({"a": replace(first, **change)}).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path, "directory"), ("/dev/zero", "dev")):
        with pytest.raises(ValueError, match=f"expected a regular file, found a {kind}"):
            load_probes(path)


def test_a_size_that_the_file_has_not_is_found_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with path.open("wb") as file:  # sparse: 8 GB that take no room
        file.write((7 << 30).to_bytes(8, "little"))
        file.truncate(8 << 30)
    with pytest.raises(ValueError, match="its header has 7516192768 bytes"):
        load_probes(path)


def test_other_things_than_probes_and_paths_are_refused_by_name(tmp_path: Path) -> None:
    probes = small_set()
    for call, word in (
        (lambda: load_probes(5), "path: .*5"), (lambda: probes.save(None), "path: .*None"),
        (lambda: ProbeSet(5), "probes: .*5"), (lambda: ProbeSet({"a": 5}), r"probes\['a'\]: .*5"),
        (lambda: ProbeSet({1: probes["conv1"]}), r"probes\[1\]"), (lambda: probes | 5, "probes: "),
        (lambda: remember(5, DATA.x), "probes: .*5"),
        (lambda: remember(probes, DATA.x, max_bytes="1"), "max_bytes: .*'1'"),
        (lambda: probes.plot({"a": 5}), "scores: "),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=word):
            call()
    assert probes.get("absent") is None and probes.get("conv1") is probes["conv1"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere it is unknown whether a writer is dead")
def test_a_save_deletes_what_a_killed_save_left(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True).stdout.strip()  # fmt: skip
    left = [tmp_path / f".convexprobe-{machine()}-{pid}-{'0' * 16}.tmp.safetensors"
            for pid in (dead, os.getpid())]  # fmt: skip
    for path in left:
        path.write_bytes(b"half")
    small_set().save(tmp_path / "probes.safetensors")
    assert [path.exists() for path in left] == [False, True]  # the other's writer is alive
