"""Probes and their sets: fitting in every form, prediction, tables, figures, files."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Data, minimum, random_data, reference
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

import convexprobe.probes
from convexprobe import PathPoint, Probe, ProbeSet, Status, fit_probes, load_probes
from convexprobe._array import to_numpy
from convexprobe.fit import GRID
from convexprobe.folds import hold_out

matplotlib.use("Agg")

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)


def host(probe: Probe) -> np.ndarray:
    """The probe's parameters `(p,)`."""
    return np.concatenate([to_numpy(probe.weights).ravel(), to_numpy(probe.bias)]).astype(float)


def check(probe: Probe, data: Data, l2: float, tol: float = 1e-3) -> None:
    """The probe says the truth and is optimal to `tol`."""
    best = minimum(data, l2)[1]
    value = reference(data, host(probe), l2)[0]
    assert probe.status is Status.CERTIFIED
    assert probe.l2 == pytest.approx(l2)
    assert probe.objective == pytest.approx(value, abs=1e-6)
    assert probe.loss == pytest.approx(reference(data, host(probe), 0.0)[0], abs=1e-6)
    assert -1e-9 <= value - best <= probe.gap + 1e-9
    assert probe.gap <= tol * data.label_entropy
    s = np.ones(len(data.y)) if data.weights is None else data.weights
    wrong = s @ (probe.predict(data.x) != data.y) / s.sum()
    assert probe.train_error == pytest.approx(wrong, abs=1e-9)
    assert probe.rows == pytest.approx(s.sum())


def test_one_array_is_one_layer() -> None:
    probes = fit_probes(DATA.x, DATA.y, l2=1e-2)
    assert list(probes) == ["activations"] and len(probes) == 1
    probe = probes["activations"]
    check(probe, DATA, 1e-2)
    assert probe.path == () and probe.validation_error is None
    assert probe.classes == (0, 1, 2) and probe.weights.shape == (3, 6)
    assert probe.passes > 0 and probe.seconds > 0


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_layers_keep_their_order_and_library(solver: str, library: ModuleType) -> None:
    wide = random_data(200, 9, 3, seed=1)
    layers = {"z": library.asarray(DATA.x), "a": library.asarray(wide.x)}
    probes = fit_probes(layers, library.asarray(DATA.y), solver, l2=1e-2)
    assert list(probes) == ["z", "a"]
    check(probes["z"], DATA, 1e-2)
    check(probes["a"], Data(wide.x, DATA.y, 3), 1e-2)
    for probe in probes.values():
        assert type(probe.weights) is type(probe.bias) is type(layers["z"])
        assert probe.weights.dtype == library.float64


@pytest.mark.parametrize("k", [2, 3])
def test_C_is_what_scikit_learn_calls_it(k: int) -> None:
    data = random_data(150, 4, k, weighted=True)
    assert data.weights is not None
    probe = fit_probes(data.x, data.y, l2=0.05, tol=1e-9, sample_weight=data.weights)["activations"]
    model = LogisticRegression(C=probe.C, solver="newton-cholesky", tol=1e-10, max_iter=500)
    model.fit(data.x, data.y, data.weights)
    theirs, ours = model.predict_proba(data.x), probe.predict_proba(data.x)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    free = fit_probes(data.x, data.y, l2=0.0, max_passes=5)["activations"]
    assert np.isposinf(free.C)


def test_a_list_of_l2_is_a_path_chosen_on_the_validation_rows() -> None:
    path = [1.0, 1e-1, 1e-3]
    probe = fit_probes(DATA.x, DATA.y, l2=path, validation=(HELD.x, HELD.y))["activations"]
    check(probe, DATA, probe.l2)
    assert [point.l2 for point in probe.path] == path
    by_hand = [
        fit_probes(DATA.x, DATA.y, l2=l2, validation=(HELD.x, HELD.y))["activations"] for l2 in path
    ]
    for point, alone in zip(probe.path, by_hand, strict=True):
        score = alone.evaluate(HELD.x, HELD.y)
        assert alone.validation_error == score.error
        assert point.validation_error == pytest.approx(score.error, abs=0.02)  # a row or two
        assert point.validation_loss == pytest.approx(score.loss, abs=0.02)
        assert point.status is Status.CERTIFIED
        assert abs(point.loss - alone.loss) < 0.05
    best = min(probe.path, key=lambda p: (p.validation_error, p.validation_loss))
    assert probe.l2 == best.l2 and probe.validation_error == best.validation_error
    assert probe.evaluate(HELD.x, HELD.y).error == best.validation_error


def test_auto_holds_out_a_fifth_of_each_class() -> None:
    probe = fit_probes(DATA.x, DATA.y, seed=3)["activations"]
    variance = DATA.x.var(axis=0).mean()
    np.testing.assert_allclose([p.l2 for p in probe.path], np.asarray(GRID) * variance, rtol=1e-9)
    counts = np.bincount(DATA.y)
    assert probe.rows == 200 - np.sum(counts // 5)
    assert probe.validation_error == min(p.validation_error for p in probe.path)
    again = fit_probes(DATA.x, DATA.y, seed=3)["activations"]
    np.testing.assert_array_equal(again.weights, probe.weights)
    other = fit_probes(DATA.x, DATA.y, seed=4)["activations"]
    assert (other.weights != probe.weights).any()


def test_auto_follows_the_scale_of_the_layer() -> None:
    one, big = (fit_probes(s * DATA.x, DATA.y)["activations"] for s in (1.0, 64.0))
    assert big.l2 == pytest.approx(64.0**2 * one.l2)
    assert big.validation_error == pytest.approx(one.validation_error, abs=0.05)
    np.testing.assert_allclose([p.loss for p in big.path], [p.loss for p in one.path], atol=2e-3)


def test_held_out_rows_are_not_fitted_to() -> None:
    # Rows that are held out may carry any features without changing the probe at one l2.
    probe = fit_probes(DATA.x, DATA.y, l2=[0.1, 0.2], seed=0)["activations"]
    held = hold_out(DATA.y, None, 0)
    moved = DATA.x.copy()
    moved[held] = 0.0
    other = fit_probes(moved, DATA.y, l2=[0.1, 0.2], seed=0)["activations"]
    for a, b in zip(probe.path, other.path, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=2e-3)
    kept = Data(DATA.x[~held], DATA.y[~held], 3)
    check(probe, replace(DATA, weights=(~held).astype(float)), probe.l2)
    assert probe.objective - minimum(kept, probe.l2)[1] <= probe.gap


def test_weights_and_repeated_rows_are_the_same() -> None:
    counts = np.random.default_rng(0).integers(0, 4, 200)
    weighted = fit_probes(DATA.x, DATA.y, l2=0.1, sample_weight=counts, tol=1e-9)["activations"]
    rows = np.repeat(np.arange(200), counts)
    repeated = fit_probes(DATA.x[rows], DATA.y[rows], l2=0.1, tol=1e-9)["activations"]
    np.testing.assert_allclose(host(weighted)[:18], host(repeated)[:18], atol=1e-3)
    assert weighted.train_error == pytest.approx(repeated.train_error, abs=1e-9)
    assert abs(weighted.C / repeated.C - 1) < 1e-6


def test_classes_fix_the_order_and_may_have_no_rows() -> None:
    names = np.array(["ant", "bee", "cat"])[DATA.y]
    probe = fit_probes(DATA.x, names, l2=0.1, classes=["dog", "cat", "bee", "ant"])["activations"]
    assert probe.classes == ("dog", "cat", "bee", "ant")
    assert probe.bias[0] == -np.inf and not probe.weights[0].any()
    p = probe.predict_proba(DATA.x)
    assert (p[:, 0] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert probe.predict(DATA.x).dtype.kind == "U"
    plain = fit_probes(DATA.x, names, l2=0.1)["activations"]
    assert plain.classes == ("ant", "bee", "cat")
    np.testing.assert_allclose(plain.predict_proba(DATA.x), p[:, [3, 2, 1]], atol=0.05)
    score = probe.evaluate(DATA.x[:2], ["dog", "ant"])
    assert score.loss == np.inf


def test_tuples_may_be_classes() -> None:
    names = [("cat", int(c)) for c in DATA.y]
    probe = fit_probes(DATA.x, names, l2=0.1)["activations"]
    assert probe.classes == (("cat", 0), ("cat", 1), ("cat", 2))
    predicted = probe.predict(DATA.x)
    assert predicted.shape == (200,) and predicted[0] in probe.classes
    wrong = np.mean([p != t for p, t in zip(predicted, names, strict=True)])
    assert wrong == pytest.approx(probe.train_error) == probe.evaluate(DATA.x, names).error


@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_a_warm_start_changes_the_cost_and_not_the_answer(l2: float) -> None:
    drifted = Data(DATA.x + 0.05 * HELD.x[np.arange(200) % 100], DATA.y, 3)
    old = fit_probes(DATA.x, DATA.y, l2=l2, tol=1e-6)
    cold = fit_probes(drifted.x, DATA.y, l2=l2, tol=1e-6)["activations"]
    for start in (old, old["activations"]):
        warm = fit_probes(drifted.x, DATA.y, l2=l2, tol=1e-6, warm_start=start)["activations"]
        check(warm, drifted, l2, 1e-6)
        assert abs(warm.objective - cold.objective) <= warm.gap + cold.gap
    same = fit_probes(DATA.x, DATA.y, l2=l2, tol=1e-5, warm_start=old)["activations"]
    assert same.passes < old["activations"].passes


def test_a_bad_warm_start_is_no_worse_than_none() -> None:
    old = fit_probes(DATA.x, DATA.y, l2=0.1)
    wild = ProbeSet({"activations": replace(old["activations"], weights=1e6 * HELD.x[:3])})
    warm = fit_probes(DATA.x, DATA.y, l2=0.1, warm_start=wild)["activations"]
    check(warm, DATA, 0.1)
    assert warm.passes <= old["activations"].passes + 1


def test_a_warm_start_may_lack_rows_of_a_class() -> None:
    some = DATA.y != 2
    old = fit_probes(DATA.x[some], DATA.y[some], l2=0.1, classes=[0, 1, 2])
    check(fit_probes(DATA.x, DATA.y, l2=0.1, warm_start=old)["activations"], DATA, 0.1)


def test_a_warm_start_that_does_not_fit_is_refused_by_layer() -> None:
    old = fit_probes({"fc1": DATA.x}, DATA.y, l2=0.1)
    with pytest.raises(ValueError, match=r"warm_start\['fc1'\].*5 features.*found 6"):
        fit_probes({"fc1": DATA.x[:, :5]}, DATA.y, l2=0.1, warm_start=old)
    with pytest.raises(ValueError, match=r"warm_start\['fc1'\].*classes \(1, 2, 3\).*\(0, 1, 2\)"):
        fit_probes({"fc1": DATA.x}, DATA.y + 1, l2=0.1, warm_start=old)
    with pytest.raises(ValueError, match=r"no layer 'fc2'.*'fc1'"):
        fit_probes({"fc2": DATA.x}, DATA.y, l2=0.1, warm_start=old)


def test_budgets_are_statuses() -> None:
    for option, status in (("max_passes", "MAX_PASSES"), ("max_seconds", "MAX_SECONDS")):
        probe = fit_probes(DATA.x, DATA.y, l2=1e-4, tol=1e-9, **{option: 0.0})["activations"]
        assert probe.status is Status[status]
        assert np.isfinite(probe.gap) and probe.gap > 0


# Predictions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_way_to_predict_agrees(dtype: Any) -> None:
    x = torch.tensor(DATA.x).to(dtype)
    probe = fit_probes(x, torch.tensor(DATA.y), l2=1e-2)["activations"]
    stored = replace(DATA, x=x.double().numpy())
    weights, bias = to_numpy(probe.weights), to_numpy(probe.bias)
    z = stored.x @ weights.T + bias
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # logits of size 10 in float32
    np.testing.assert_allclose(to_numpy(probe.predict_proba(x)), p, atol=tolerance)
    np.testing.assert_allclose(to_numpy(probe.log_proba(x)), np.log(p), atol=10 * tolerance)
    np.testing.assert_array_equal(probe.predict(x), p.argmax(axis=1))
    score = probe.evaluate(x, torch.tensor(DATA.y))
    assert score.error == pytest.approx(np.mean(p.argmax(axis=1) != DATA.y))
    assert score.error == pytest.approx(probe.train_error, abs=1e-9)
    assert score.loss == pytest.approx(probe.loss, abs=1e-5)
    assert score.label_entropy == pytest.approx(DATA.label_entropy)
    assert score.bits == pytest.approx(score.loss / np.log(2))
    assert score.usable_information == pytest.approx((DATA.label_entropy - score.loss) / np.log(2))
    assert score.rows == 200
    layer = probe.to_linear()
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    assert layer.weight.requires_grad
    with torch.no_grad():
        q = torch.softmax(layer(x.float()), dim=1).numpy()
    np.testing.assert_allclose(q, p, atol=1e-5)
    # The layer has its own memory: training it leaves the probe as it was.
    with torch.no_grad():
        layer.weight.zero_()
    np.testing.assert_array_equal(to_numpy(probe.weights), weights)


def test_a_probe_predicts_in_every_library(library: ModuleType) -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=1e-2)["activations"]
    p = probe.predict_proba(library.asarray(HELD.x))
    assert type(p) is type(library.asarray(HELD.x))
    np.testing.assert_allclose(to_numpy(p), probe.predict_proba(HELD.x), atol=1e-12)


def test_rows_of_another_width_are_refused() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=1e-2)["activations"]
    with pytest.raises(ValueError, match="expected 6 features, found 5"):
        probe.predict(DATA.x[:, :5])
    with pytest.raises(ValueError, match="row 1 has class 9"):
        probe.evaluate(DATA.x[:2], [0, 9])


def test_layouts_in_memory_do_not_matter() -> None:
    x = DATA.x
    forms = [np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1][::-1]]
    forms += [torch.tensor(x), torch.tensor(x.T.copy()).T, torch.tensor(np.repeat(x, 2, 1))[:, ::2]]
    first = host(fit_probes(forms[0], DATA.y, l2=1e-2)["activations"])
    for form in forms:
        labels = torch.tensor(DATA.y) if isinstance(form, torch.Tensor) else DATA.y
        probe = fit_probes(form, labels, l2=1e-2)["activations"]
        np.testing.assert_allclose(host(probe), first, rtol=1e-6, atol=1e-8)


# Sets


def small_set() -> ProbeSet:
    layers = {"conv1": DATA.x, "block.2/fc": DATA.x[:, :4], "out": 3 * DATA.x}
    probes = fit_probes(layers, DATA.y, l2=[1e-3, 1e-1], validation=(layers, DATA.y))
    return probes | fit_probes({"plain": DATA.x}, DATA.y, l2=0.1, max_passes=0)


def test_a_set_is_a_mapping() -> None:
    probes = small_set()
    assert list(probes) == ["conv1", "block.2/fc", "out", "plain"]
    assert "out" in probes and "in" not in probes and 3 not in probes
    with pytest.raises(ValueError, match=r"no layer 'conv2'.*'conv1'"):
        probes["conv2"]
    joined = probes | {"conv1": probes["out"]}
    assert joined["conv1"] is probes["out"] and probes["conv1"] is not probes["out"]
    scores = probes.evaluate({"out": 3 * DATA.x, "conv1": DATA.x}, DATA.y)
    assert list(scores) == ["out", "conv1"]
    assert scores["conv1"].error == pytest.approx(probes["conv1"].train_error)
    with pytest.raises(ValueError, match=r"no layer 'outt'.*'out'"):
        probes.evaluate({"outt": DATA.x}, DATA.y)


def test_the_table_says_what_the_probes_say() -> None:
    probes = small_set()
    text = str(probes)
    assert repr(probes) == text
    lines = text.splitlines()
    assert len(lines) == 1 + len(probes) + 1 and lines[-1].startswith("objective: F(W, b)")
    assert lines[0].split()[:5] == ["layer", "features", "l2", "loss", "gap"]
    for line, (name, probe) in zip(lines[1:-1], probes.items(), strict=True):
        words = line.split()
        assert words[0] == name and words[1] == str(probe.weights.shape[1])
        assert words[3] == f"{probe.loss:.4f}" and words[-1] == probe.status.name.lower()
        assert f"{probe.train_error:.2%}" in words
    assert max(map(len, lines[:-1])) <= 120
    frame = probes.to_frame()
    assert isinstance(frame, pd.DataFrame) and list(frame.index) == list(probes)
    assert frame.loc["out", "gap"] == probes["out"].gap
    assert frame.loc["plain", "status"] == "max_passes"
    assert str(ProbeSet({})).splitlines()[0].startswith("layer")


def test_the_figure_shows_the_errors_by_layer() -> None:
    import matplotlib.pyplot as plt

    probes = small_set()
    tried = ProbeSet({name: probes[name] for name in list(probes)[:3]})
    try:
        ax = tried.plot()
        assert ax.get_ylabel() == "validation error (%)"
        assert [t.get_text() for t in ax.get_xticklabels()] == list(tried)
        np.testing.assert_allclose(
            ax.lines[0].get_ydata(), [100 * p.validation_error for p in tried.values()]
        )
        ax = probes.plot()  # one of them has no validation error
        assert ax.get_ylabel() == "training error (%)"
        np.testing.assert_allclose(
            ax.lines[0].get_ydata(), [100 * p.train_error for p in probes.values()]
        )
        _, mine = plt.subplots()
        scores = probes.evaluate({"conv1": DATA.x, "plain": DATA.x}, DATA.y)
        assert probes.plot(scores, ax=mine) is mine
        np.testing.assert_allclose(
            mine.lines[0].get_ydata(), [100 * s.error for s in scores.values()]
        )
        mine.figure.canvas.draw()
    finally:
        plt.close("all")


# Files


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
        path=(PathPoint(1e-6, 0.5, float("inf"), Status.ROUNDING, 0.25, float("inf")),),
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


def test_a_file_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr(convexprobe.probes.os, "replace", no_rename)
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
