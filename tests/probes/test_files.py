"""Sets of probes in files: every field survives, and a file that is none is refused."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import convexprobe.probes.probe
from convexprobe import PathPoint, Probe, ProbeSet, Status, fit_probes, load_probes
from convexprobe.arrays.backend import to_numpy
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
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a file of probes"):
        load_probes(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    fit_probes(DATA.x, DATA.y, l2=0.1).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            load_probes(path)


def test_a_damaged_header_is_refused_or_still_a_set(tmp_path: Path) -> None:
    path = tmp_path / "p"
    fit_probes(DATA.x, DATA.y, l2=0.1).save(path)
    content = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(size):
        damaged = content.copy()
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert isinstance(load_probes(path), ProbeSet)
        except ValueError:
            refused += 1
    assert refused > size / 3  # digits and names may change unseen; structure may not


@pytest.mark.parametrize(
    "probes", ["[1]", '["a"]', "3", "null", '[{"layer": "a"}]', "[[]]", '{"a": 1}']
)
def test_metadata_of_another_form_are_refused(probes: str, tmp_path: Path) -> None:
    path = tmp_path / "p"
    save_file({"a": np.zeros(2)}, path, {"format": "convexprobe-1", "probes": probes})
    with pytest.raises(ValueError):
        load_probes(path)


def test_missing_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    probes = fit_probes(DATA.x, DATA.y, l2=0.1)
    probes.save(path)
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
    tensors = load_file(path)
    save_file({"0.weights": tensors["0.weights"]}, path, meta)
    with pytest.raises(ValueError):
        load_probes(path)
