"""Activations and labels in files of others: they give what the arrays give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convexprobe as cxp

N, D = 60, 4
GENERATOR = np.random.default_rng(0)
LAYERS = {f"layer_{i}": GENERATOR.standard_normal((N, D + i)).astype("f4") for i in (1, 2, 10)}
LABELS = np.arange(N) % 3
OPTIONS: dict[str, Any] = {"l2": 1e-2, "progress": False}


def torch_arrays(**more: Any) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in {**LAYERS, **more}.items()}


def save_hdf5(path: Path, **settings: Any) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        for name, array in {**LAYERS, "labels": LABELS}.items():
            file.create_dataset(name, data=array, **settings)


def save(path: Path, kind: str) -> Path:
    """The layers and the labels in a file, or a folder, of this kind."""
    whole = {**LAYERS, "labels": LABELS}
    if kind == "folder":
        path.mkdir()
        for name, array in whole.items():
            np.save(path / f"{name}.npy", array)
        (path / "notes.txt").write_text("of nobody's concern")
        return path
    file = path.with_suffix(f".{kind.removeprefix('chunked ')}")
    match kind:
        case "npz":
            np.savez(file, **whole)
        case "safetensors":
            save_file(torch_arrays(labels=LABELS), file)
        case "pt":
            torch.save(torch_arrays(labels=LABELS), file)
        case "h5":
            save_hdf5(file)
        case "chunked hdf5":
            save_hdf5(file, chunks=True, compression="gzip")
    return file


KINDS = ["folder", "npz", "safetensors", "pt", "h5", "chunked hdf5"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_what_the_arrays_give(tmp_path: Path, kind: str) -> None:
    activations, labels = cxp.open_activations(save(tmp_path / "rows", kind))
    assert list(activations) == list(LAYERS)  # by number: 10 after 2
    assert labels.tolist() == LABELS.tolist()
    for name, rows in activations.items():
        assert rows.shape == LAYERS[name].shape and rows.dtype == torch.float32
        assert np.array_equal(rows.load().numpy(), LAYERS[name])
    found = cxp.fit_probes(activations, labels, **OPTIONS)
    wanted = cxp.fit_probes(torch_arrays(), labels, **OPTIONS)
    for name, probe in wanted.items():
        assert found[name].objective == probe.objective
        assert torch.equal(found[name].weights, probe.weights)


def test_rows_on_disk_are_streamed_where_memory_is_short(tmp_path: Path) -> None:
    activations, labels = cxp.open_activations(save(tmp_path / "rows", "folder"))
    small = cxp.fit_probes(activations, labels, memory_limit=200.0, **OPTIONS)
    large = cxp.fit_probes(activations, labels, **OPTIONS)
    for name, probe in large.items():
        assert abs(small[name].objective - probe.objective) <= probe.gap + small[name].gap


def test_mapped_rows_take_no_memory_and_are_never_written(tmp_path: Path) -> None:
    file = tmp_path / "features.npy"
    np.save(file, LAYERS["layer_1"])
    activations, labels = cxp.open_activations(file)
    assert list(activations) == ["features"] and labels is None
    loaded = activations["features"].load()
    loaded += 1
    assert np.array_equal(np.load(file), LAYERS["layer_1"])


def test_concepts_stand_beside_the_layers(tmp_path: Path) -> None:
    tense = np.where(LABELS == 0, "past", "present")
    np.save(tmp_path / "block.npy", LAYERS["layer_1"])
    np.savez(tmp_path / "labels.npz", a=LABELS)  # the name of the file counts with its arrays'
    np.save(tmp_path / "labels.tense.npy", tense)
    activations, labels = cxp.open_activations(tmp_path)
    assert list(activations) == ["block"] and set(labels) == {"a", "tense"}
    assert labels["tense"].tolist() == tense.tolist()
    assert set(cxp.fit_probes(activations, labels, **OPTIONS)) == {"block/a", "block/tense"}


def test_groups_of_hdf5_are_names_with_slashes_and_strings_are_labels(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = tmp_path / "rows.h5"
    with h5py.File(file, "w") as out:
        out["encoder/block"] = LAYERS["layer_1"]
        out["labels/tense"] = [["past", "present"][i % 2] for i in range(N)]
        out["labels/number"] = LABELS
    activations, labels = cxp.open_activations(file)
    assert list(activations) == ["encoder/block"]
    assert labels["tense"].tolist()[:2] == ["past", "present"]
    assert labels["number"].tolist() == LABELS.tolist()


@pytest.mark.parametrize("dtype", [">f4", "f8", "f2", "i2", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_real_dtype_and_order_is_read(tmp_path: Path, dtype: str, order: Any) -> None:
    x = np.asarray(10 * LAYERS["layer_1"]).astype(dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    rows = cxp.open_activations(tmp_path / "x.npy")[0]["x"].load()
    assert np.array_equal(rows.numpy(), x) and rows.is_floating_point()


def test_bfloat16_is_read(tmp_path: Path) -> None:
    x = torch.tensor(LAYERS["layer_1"]).bfloat16()
    save_file({"x": x}, tmp_path / "x.safetensors")
    assert torch.equal(cxp.open_activations(tmp_path)[0]["x/x"].load(), x)


class Evil:
    """What would be called if a pickle were read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    objects = np.array([Evil(tmp_path / "run")] * 3, dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    objects.dump(tmp_path / "c.npy")
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(ValueError, match=rf"{name}'.* it holds pickled objects; save an array"):
            cxp.open_activations(tmp_path / name)
    torch.save({"x": Evil(tmp_path / "run")}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"d\.pt': cannot be read as arrays"):
        cxp.open_activations(tmp_path / "d.pt")
    assert not (tmp_path / "run").exists()


def test_what_is_no_layer_is_refused_by_name(tmp_path: Path) -> None:
    def refused(message: str, **arrays: Any) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            cxp.open_activations(tmp_path / "x.npz")

    x = LAYERS["layer_1"]
    refused(r"x\.npz', 'a': expected a layer of shape \(rows, features\), found \(60,\)", a=x[:, 0])
    refused(r"'a': expected a layer .* found \(60, 2, 2\); reshape it", a=x[:, :4].reshape(N, 2, 2))
    refused(r"'a': expected a layer .* found \(0, 5\)", a=x[:0])
    refused(r"'b': expected 60 rows like .*'a', found 59", a=x, b=x[1:])
    refused(r"'labels': expected 60 rows like .*'a', found 59", a=x, labels=LABELS[1:])
    refused(r"'a': expected real numbers, found torch.complex64", a=x.astype("c8"))
    refused(r"'a': expected numbers, found dtype <U\d+", a=x.astype(str))
    refused(r"expected a layer beside the labels, found none", labels=LABELS)
    refused(r"expected labels or concepts, found both", a=x, labels=LABELS, **{"labels.b": LABELS})
    refused(r"'labels': expected labels of shape \(rows,\), found \(\)", a=x, labels=np.array(3))


def test_files_of_different_lengths_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LAYERS["layer_1"])
    np.save(tmp_path / "b.npy", LAYERS["layer_1"][:50])
    with pytest.raises(ValueError, match=r"b\.npy': expected 60 rows like '.*a\.npy', found 50"):
        cxp.open_activations(tmp_path)
    (tmp_path / "b.npy").unlink()
    np.save(tmp_path / "labels.npy", LABELS)
    np.savez(tmp_path / "z.npz", labels=LABELS)
    with pytest.raises(ValueError, match=r"z\.npz', 'labels': labels for the second time"):
        cxp.open_activations(tmp_path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.pt", "a.h5"])
def test_torn_files_and_pipes_are_refused(tmp_path: Path, name: str) -> None:
    if name == "a.h5":
        pytest.importorskip("h5py", reason="h5py is not installed")
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"{name}': cannot be read as arrays: "):
        cxp.open_activations(tmp_path)
    if hasattr(os, "mkfifo"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="found a pipe"):
            cxp.open_activations(tmp_path / name)


def test_what_holds_no_arrays_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "gone.npy"):
        with pytest.raises((FileNotFoundError, ValueError), match=r"(?i)no such file"):
            cxp.open_activations(path)
