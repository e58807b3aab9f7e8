"""The training is what it would be without the monitor, bit for bit."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexprobe as cxp
from tests.tiny import bits, checkpoints, network, rows, sweep

X, Y = rows()


def train(monitor: cxp.ProbeMonitor | None, steps: int = 10) -> dict[str, Any]:
    """A training whose every draw is global; returns all that a monitor could change."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        model = network()
        model[1].eval()  # frozen batch norm: its flag is to stay
        optimizer = torch.optim.Adam(model.parameters(), 3e-2)
        loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True)
        losses = []
        for step in range(steps):
            if monitor is not None:
                monitor.record(model, step)
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x * random.random()), y)
                (loss * np.random.rand()).backward()  # noqa: NPY002
                optimizer.step()
                losses.append(loss.item())
        return {
            "losses": losses,
            "state": [v.numpy().tobytes() for v in model.state_dict().values()],
            "gradients": [p.grad.numpy().tobytes() for p in model.parameters()],
            "optimizer": repr(optimizer.state_dict()),
            "flags": [m.training for m in model.modules()],
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": repr(np.random.get_state()),  # noqa: NPY002
            "python": random.getstate(),
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        }
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])


@pytest.mark.parametrize("kind", ["tensors", "shuffled loader", "disk"])
def test_training_is_bit_for_bit_what_it_would_be(kind: str, tmp_path: Any) -> None:
    data: tuple[Any, ...] = (X, Y)
    if kind == "shuffled loader":  # the seed is fixed while it is read: the same order every time
        data = (DataLoader(TensorDataset(X, Y), batch_size=40, shuffle=True),)
    monitor = cxp.ProbeMonitor(*data, l2=1e-2, out=tmp_path if kind == "disk" else None)
    assert train(monitor) == train(None)
    assert list(monitor.history) == list(range(10)) and not monitor.history.failures


def test_a_monitor_and_a_sweep_find_the_same(tmp_path: Any) -> None:
    steps = checkpoints()
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2, test=rows(60, seed=2))
    for step, state in steps:
        model = network()
        model.load_state_dict(state)
        monitor.record(model.train(), step)
    assert bits(monitor.history) == bits(sweep(steps))


def test_a_monitor_goes_on_where_it_was(tmp_path: Any) -> None:
    whole = cxp.ProbeMonitor(X, Y, l2=1e-2)
    train(whole)
    train(cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path), steps=6)
    again = cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path)
    train(again)
    assert bits(again.history) == bits(whole.history)
    with pytest.warns(UserWarning, match="step 3 is recorded already, with other weights"):
        assert again.record(network(99), 3) is None
    again.close()
    with pytest.raises(ValueError, match="recorded already, with other weights"):
        cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path, on_error="raise").record(network(99), 3)


def test_a_network_that_diverges_is_noted_and_training_goes_on() -> None:
    broken = network()
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2)
    for step in (0, 2):  # the first step is no exception
        with pytest.warns(UserWarning, match=f"step {step}: .*'0'.* finite values, found nan in"):
            assert monitor.record(broken, step) is None
        assert monitor.record(network(step), step + 1) is not None
    assert list(monitor.history) == [1, 3]
    assert [source for source, _ in monitor.history.failures] == ["step 0", "step 2"]
    assert monitor.record(network(5), 2) is not None
    assert [source for source, _ in monitor.history.failures] == ["step 0"]
    with pytest.raises(ValueError, match="finite"):
        cxp.ProbeMonitor(X, Y, l2=1e-2, on_error="raise").record(broken, 0)


class Faulty(nn.Module):
    """Raises whatever it is told to, in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.error = nn.Linear(8, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return self.body(x)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("size mismatch\nat line 2"), torch.OutOfMemoryError("CUDA out of memory"),
     KeyError("mask"), AssertionError(), OSError("no image"), StopIteration()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_forward_pass_raises_is_noted_and_training_goes_on(error: Exception) -> None:
    model = Faulty()
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2)
    for step in (0, 2):
        model.error = error
        with pytest.warns(UserWarning, match=f"not probed: step {step}: {type(error).__name__}"):
            assert monitor.record(model.train(), step) is None
        model.error = None
        assert model.training and monitor.record(model, step + 1) is not None
        with torch.no_grad():
            model.body.weight.add_(0.1)
    assert list(monitor.history) == [1, 3]
    assert all("\n" not in reason for _, reason in monitor.history.failures)
    model.error = error
    with pytest.raises(type(error)):
        cxp.ProbeMonitor(X, Y, l2=1e-2, on_error="raise").record(model, 0)


def test_steps_that_fail_alike_one_after_another_are_told_once() -> None:
    model = Faulty()
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2)
    reasons = ["of a", "of a", "of b", "of b", None, "of b"]
    with pytest.warns(UserWarning) as caught:
        for step, reason in enumerate(reasons):
            model.error = None if reason is None else RuntimeError(reason)
            assert (monitor.record(model, step) is None) == (reason is not None)
    told = [str(warning.message).removeprefix("not probed: ") for warning in caught]
    starts = ["step 0", "step 2", "step 5"]
    assert told == [f"{s}: RuntimeError: of {r}" for s, r in zip(starts, "abb", strict=True)]
    assert [s for s, _ in monitor.history.failures] == [f"step {s}" for s in (0, 1, 2, 3, 5)]
    with pytest.warns(UserWarning) as caught:  # the reason names the step
        for step in (4, 4):
            assert monitor.record(network(), step) is None
    assert len(caught) == 1 and "recorded already" in str(caught[0].message)


def test_an_error_without_a_word_is_told() -> None:
    model = Faulty()
    model.error = ValueError()
    with pytest.warns(UserWarning, match="not probed: step 0"):
        cxp.ProbeMonitor(X, Y, l2=1e-2).record(model, 0)


def test_an_interrupt_ends_the_training() -> None:
    model = Faulty()
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        cxp.ProbeMonitor(X, Y, l2=1e-2).record(model, 0)


def test_a_pool_or_loader_that_raises_is_noted() -> None:
    def pool(x: Tensor) -> Tensor:
        raise ZeroDivisionError("of the pool's own")

    with pytest.warns(UserWarning, match="step 0: ZeroDivisionError: of the pool's own"):
        cxp.ProbeMonitor(X, Y, l2=1e-2, pool=pool).record(network(), 0)

    class Loader:
        def __iter__(self) -> Any:
            yield X, Y
            raise ConnectionError("the server is gone")

    with pytest.warns(UserWarning, match="step 0: ConnectionError: the server is gone"):
        cxp.ProbeMonitor(Loader(), l2=1e-2).record(network(), 0)


def test_rows_that_change_are_refused() -> None:
    class Drifting:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Any:
            self.count += 1
            yield X, Y.roll(self.count)

    monitor = cxp.ProbeMonitor(Drifting(), l2=1e-2, on_error="raise")
    monitor.record(network(), 0)
    with pytest.raises(ValueError, match="labels of the steps before, in the same order"):
        monitor.record(network(1), 1)


def test_labels_may_be_strings_and_concepts() -> None:
    words = [["cat", "dog", "eel"][int(y)] for y in Y]
    plain, named = (cxp.ProbeMonitor(X, labels, l2=1e-2, test=(X, labels)) for labels in (Y, words))
    for monitor in (plain, named):
        monitor.record(network(), 0)
    for name, probe in plain.history[0].items():
        other = named.history[0][name]
        assert other.classes == ("cat", "dog", "eel")
        assert (probe.weights == other.weights).all() and probe.loss == other.loss
    assert [r.test_error for r in named.history.entries[0].layers] == [
        r.test_error for r in plain.history.entries[0].layers
    ]


def test_each_concept_keeps_its_own_penalty_for_the_whole_training() -> None:
    concepts = {"class": [f"c{int(y)}" for y in Y], "sign": (X[:, 0] > 0).tolist()}
    monitor = cxp.ProbeMonitor(X, concepts, test=(X, {"sign": concepts["sign"]}), layers=["0", "4"])
    for step, state in checkpoints(3):
        model = network()
        model.load_state_dict(state)
        monitor.record(model, step)
    history = monitor.history
    assert history.layers == ("0/class", "0/sign", "4/class", "4/sign")
    table = history.to_frame()
    assert (table.groupby("layer")["l2"].nunique() == 1).all() and table["l2"].nunique() > 1
    assert {r.layer for e in history.entries for r in e.layers if r.test_error is not None} == {
        "0/sign", "4/sign"
    }  # fmt: skip
    assert not history.failures
    alone = cxp.fit_probes(
        cxp.extract(network(), [X], layers="0")[0],
        concepts["class"],
        l2=table["l2"].loc[0, "0/class"],
    )
    assert alone["0"].classes == history[0]["0/class"].classes


def test_a_monitor_serves_one_thread_at_a_time() -> None:
    monitor, inside, most = cxp.ProbeMonitor(X, Y, l2=1e-2), 0, 0

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1
            return self.body(x)

    threads = [Thread(target=monitor.record, args=(Watched(), step)) for step in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list(monitor.history) == list(range(6))


def test_a_directory_has_one_monitor_until_it_is_closed(tmp_path: Path) -> None:
    first = cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path)
    first.record(network(), 0)
    with pytest.raises(RuntimeError, match=rf"out: .*process {os.getpid()} .*let it finish"):
        cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path)
    with pytest.raises(RuntimeError, match="writes probes there"):
        sweep(out=tmp_path)
    history = first.history
    first.close()
    with cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path) as second:
        assert bits(second.history) == bits(history)
    with pytest.raises(ValueError, match="records other settings"):  # and it lets go at once
        cxp.ProbeMonitor(X, Y, l2=1e-1, out=tmp_path)
    cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path)


def test_a_network_without_its_weights_is_refused_in_one_sentence() -> None:
    offloaded = network()
    offloaded[4].to("meta")
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2)
    with pytest.warns(UserWarning, match=r"step 0: model: '4.weight' has no values .*load the mod"):
        monitor.record(offloaded, 0)
    with pytest.raises(ValueError, match=r"model: '4.weight' has no values .*load the model whole"):
        sweep(model=offloaded)


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"l2": [1e-2, 1e-3]}, "l2: expected one number"),
    ({"l2": -1.0}, "l2: expected"),
    ({"tol": 0}, "tol: expected a number above 0"),
    ({"tol": "a"}, "tol: expected a number above 0, found 'a'"),
    ({"warm_start": "hot"}, "warm_start: expected one of auto, copy, zero"),
    ({"warm_start": None}, "warm_start: expected"),
    ({"on_error": "ignore"}, "on_error: expected one of warn, raise"),
    ({"solver": "newton"}, "newton-cg"),
    ({"batch_size": -1}, "batch_size: expected an integer of at least 1, found -1"),
    ({"batch_size": 2.5}, "batch_size: expected an integer, found 2.5"),
    ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
    ({"seed": 2**32}, r"seed: expected an integer below 2\*\*32"),
    ({"max_passes": 0}, "max_passes: expected a number above 0"),
    ({"out": 3}, "out: expected a path, found 3"),
    ({"out": __file__}, "out: expected a directory, found a file"),
    ({"pool": "max"}, "pool: unknown name 'max'"),
    ({"pool": 3}, "pool must be a name"),
    ({"layers": 3}, r"layers: expected names or a predicate, found 3 \(int\)"),
    ({"layers": ["0", 3]}, r"layers: expected names or a predicate, found 3 \(int\)"),
    ({"process_group": "all"}, "process_group: "),
    ({"labels": None}, "data: expected labels beside Tensor"),
    ({"labels": Y[:3]}, "labels: expected 150 labels, one a row, found 3"),
    ({"labels": [0] * 150}, "labels: expected at least two classes, found 1"),
    ({"labels": {"a": Y, "b": Y * 0}}, r"labels\['b'\]: expected at least two classes"),
    ({"labels": [(1,), (2,)] * 75, "out": "nowhere"}, r"labels: class \(1,\) cannot be saved"),
    ({"data": "images"}, "data: expected a dense array of inputs"),
    ({"data": X.to_sparse()}, "data: expected a dense array of inputs"),
    ({"data": {}}, "data: expected inputs, found none"),
    ({"data": {"a": X, "b": X[:9]}}, "data: expected inputs of as many rows"),
    ({"data": [[1.0], [1.0, 2.0]]}, "data: expected a dense array of inputs"),
    ({"data": iter([(X, Y)]), "labels": None}, "data: .* iterated over again"),
    ({"data": [X], "labels": None}, "data: expected batches with labels"),
    ({"data": [(X, ["a"] * 150)], "labels": None}, "data: batch 0: labels must be numbers"),
    ({"data": 3, "labels": None}, "data: .* iterated over again and again, found int"),
    ({"test": X}, "test: expected a pair"),
    ({"test": (X, Y[:3])}, "test labels: expected 150 labels, one a row, found 3"),
    ({"test": (X, Y + 1)}, "test labels: row .* has class 3, which is not in classes"),
    ({"test": (X, {"a": Y})}, r"test labels\['a'\]: expected a concept of labels"),
    ({"data": [(X, Y)], "labels": None, "test": (X, Y)}, "test: expected batches with labels"),
]


@pytest.mark.parametrize(("change", "message"), ARGUMENTS, ids=lambda v: str(v)[:30])
def test_arguments_are_refused_by_name_at_the_door(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": X, "labels": Y, **change}
    with pytest.raises((TypeError, ValueError, OSError), match=message):
        cxp.ProbeMonitor(settings.pop("data"), settings.pop("labels"), **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "step", "source", "message"),
    [
        (network(), -1, "", "step: expected an integer of at least 0, found -1"),
        (network(), 1.5, "", "step: expected an integer, found 1.5"),
        (network(), True, "", "step: expected an integer, found True"),
        (network(), 0, 3, "source: expected a string, found 3"),
        ("model", 0, "", "model"),
        (nn.Sequential(nn.Linear(8, 3)), 0, "", "layer '4'"),
    ],
)
def test_arguments_of_a_record_raise_whatever_on_error_says(
    model: Any, step: Any, source: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cxp.ProbeMonitor(X, Y, layers="4").record(model, step, source)
