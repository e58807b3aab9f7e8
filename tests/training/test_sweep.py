"""Sweeps over checkpoints as a whole."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

import convexprobe as cxp
from convexprobe import ProbeHistory
from tests.tiny import SETTINGS, bits, checkpoints, network, rows, sweep

STEPS = checkpoints(5)
HISTORY = sweep(STEPS)


SHORT: dict[str, Any] = {"layers": ["4"], "test": None}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_exactly_as_it_was(fails: bool) -> None:
    model = network(7).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identity = [id(p) for p in model.parameters()]
    state = torch.get_rng_state()
    steps: Any = [*STEPS, (99, {"0.weight": torch.zeros(1)})] if fails else STEPS
    if fails:
        with pytest.raises(ValueError, match="step 99: does not fit"):
            sweep(steps, model, on_error="raise")
    else:
        sweep(steps, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == identity
    assert [m.training for m in model] == [True, False, True, True, True]
    assert torch.equal(torch.get_rng_state(), state)


def test_each_step_is_what_fitting_it_alone_finds() -> None:
    x, y = rows()
    xt, yt = rows(60, seed=2)
    for step, state in STEPS:
        model = network()
        model.load_state_dict(state)
        inner, labels = cxp.extract(model, [(x, y)])
        alone = cxp.fit_probes(inner, labels, l2=1e-2)
        scores = alone.evaluate(*cxp.extract(model, [(xt, yt)]))
        entry = next(e for e in HISTORY.entries if e.step == step)
        for result in entry.layers:
            probe, swept = alone[result.layer], HISTORY[step][result.layer]
            assert abs(probe.objective - swept.objective) <= probe.gap + swept.gap
            assert abs(scores[result.layer].error - result.test_error) <= 1.1 / 60
            found = swept.evaluate(*(a[result.layer] if isinstance(a, dict) else a
                                     for a in cxp.extract(model, [(xt, yt)])))  # fmt: skip
            assert found.error == result.test_error and found.loss == result.test_loss


def test_later_probes_start_from_earlier_ones_and_cost_less() -> None:
    starts = [[r.start for r in entry.layers] for entry in HISTORY.entries]
    assert set(starts[0]) == {"zero"} and "zero" not in starts[-1]
    cold = sweep(STEPS, warm_start="zero")
    assert {r.start for entry in cold.entries for r in entry.layers} == {"zero"}
    copied = sweep(STEPS, warm_start="copy")
    assert {r.start for e in copied.entries for r in e.layers} <= {"zero", "copied"}

    def passes(history: ProbeHistory) -> float:
        return sum(r.passes for entry in history.entries[1:] for r in entry.layers)

    # On 150 rows exact Newton steps, the default, cost less than choosing a start.
    warm, cold = (sweep(STEPS, solver="newton-cg", warm_start=s) for s in ("auto", "zero"))
    assert passes(warm) < passes(cold)


def test_the_same_weights_are_flagged_and_not_solved_twice() -> None:
    history = sweep([*STEPS, (50, STEPS[2][1]), (60, STEPS[-1][1])])
    assert [e.duplicate_of for e in history.entries][-2:] == [STEPS[2][0], STEPS[-1][0]]
    assert history.entries[-1].solve_seconds == 0 and "[50, 60]" in str(history)
    assert (history[60]["4"].weights == history[STEPS[-1][0]]["4"].weights).all()


def test_auto_chooses_one_penalty_a_layer_for_the_whole_training(tmp_path: Path) -> None:
    history = sweep(STEPS[:3], l2="auto", out=tmp_path)
    table = history.to_frame()
    assert (table.groupby("layer")["l2"].nunique() == 1).all() and table["l2"].nunique() > 1
    assert bits(sweep(STEPS, l2="auto", out=tmp_path)) == bits(sweep(STEPS, l2="auto"))


def test_other_kinds_of_data_give_the_same() -> None:
    x, y = rows()
    loader = [(x[i : i + 250], y[i : i + 250]) for i in range(0, 150, 250)]
    history = cxp.probe_checkpoints(network(7), dict(STEPS), loader, test=[rows(60, seed=2)],
                                    **SETTINGS)  # fmt: skip
    assert bits(history) == bits(HISTORY)
    held = tuple(a.numpy() for a in rows(60, seed=2))
    arrays = cxp.probe_checkpoints(network(7), STEPS, x.numpy(), y.numpy(), test=held, **SETTINGS)
    assert bits(arrays) == bits(HISTORY)


def test_progress_counts_checkpoints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep(STEPS, progress=True, out=tmp_path)
    shown = capsys.readouterr().err
    assert "5/5" in shown and "step 12" in shown and "extract" not in shown
    sweep(STEPS, progress=True, out=tmp_path)
    assert "5/5" in capsys.readouterr().err


class Stubborn(nn.Sequential):
    """A network that does with a state dict what it likes."""

    def load_state_dict(self, state_dict: Any, *args: Any, **settings: Any) -> Any:
        if state_dict["4.bias"].sum() > 100:
            self[4].weight = nn.Parameter(torch.zeros(3, 12))  # another object, and half of it
            self.loads = 1
            raise LookupError("a shape of my own")
        return super().load_state_dict(state_dict, *args, **settings)


def bad_checkpoints() -> list[Any]:
    state = STEPS[0][1]
    return [
        (8, {**state, "4.bias": torch.full((3,), 1e9)}), (-1, state), (float("inf"), state),
        ("five", state), (10**40, state), (1, None), (2, {}), 3, (4, {"model": {}}), None,
        (5, {3: torch.zeros(2)}), (6, {"0.weight": "text"}), (7, "gone.pt"), (1, 2, 3),
        (9, {**state, "4.bias": state["4.bias"][:1]}),
        (11, {**state, "1.running_var": torch.full((12,), torch.nan)}),
    ]  # fmt: skip


def test_a_bad_checkpoint_is_reported_and_the_others_go_on() -> None:
    model = Stubborn(*network(7))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    identity, attributes = [id(p) for p in model.parameters()], set(vars(model))
    bad = bad_checkpoints()
    items = iter([STEPS[0], *bad, STEPS[4]])
    with pytest.warns(UserWarning, match="not probed: ") as caught:
        history = sweep(items, model, **SHORT)
    assert list(history) == [0, 12] and len(history.failures) == len(bad) == len(caught)
    assert "a shape of my own" in str(caught[0].message)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == identity and set(vars(model)) == attributes


def test_an_iterator_that_raises_ends_the_sweep_and_what_is_done_stays() -> None:
    def states() -> Any:
        yield STEPS[0]
        raise ConnectionError("the bucket is gone")

    with pytest.warns(UserWarning, match="not probed: checkpoints: ConnectionError: the bucket"):
        history = sweep(states(), **SHORT)
    assert list(history) == [0]
    assert history.failures == (("checkpoints", "ConnectionError: the bucket is gone"),)


def test_a_step_for_the_second_time_is_reported() -> None:
    with pytest.warns(UserWarning, match="step 3 for the second time"):
        assert list(sweep(iter([STEPS[1], (3, STEPS[2][1])]), **SHORT)) == [3]


@pytest.mark.filterwarnings("ignore:not probed")
def test_a_sweep_in_which_nothing_could_be_probed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not one could be probed: there was none"):
        sweep(iter([]))
    bad = {
        k: torch.full_like(v, torch.nan) for k, v in STEPS[0][1].items() if v.is_floating_point()
    }
    states = [(1, {}), (2, {**STEPS[0][1], **bad})]
    with pytest.raises(
        ValueError, match=r"not one could be probed: step 1: expected.*\(2 in all\)"
    ):
        sweep(states, out=tmp_path, **SHORT)
    sweep(STEPS[:1], out=tmp_path, **SHORT)
    with pytest.raises(ValueError, match="not one could be probed"):  # what was there is not of it
        sweep(states, out=tmp_path, **SHORT)


def sparse(matrix: torch.Tensor, layout: str) -> torch.Tensor:
    return matrix.to_sparse() if layout == "coo" else matrix.to_sparse_csr()


class Graph(nn.Module):
    """A network with a sparse buffer, such as the adjacency of a graph."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.body = nn.Linear(8, 3)
        eye = torch.eye(3)
        self.register_buffer(
            "adjacency", eye.to_sparse() if layout == "coo" else eye.to_sparse_csr()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) @ self.adjacency.to_dense()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_buffers_are_restored(layout: str) -> None:
    model = Graph(layout)
    other = model.state_dict()
    dense = 2 * torch.eye(3)
    other["adjacency"] = sparse(dense, layout)
    history = sweep([(0, Graph(layout).state_dict()), (1, other)], model, layers=["body"])
    assert list(history) == [0, 1] and history.entries[1].duplicate_of is None
    assert torch.equal(model.adjacency.to_dense(), torch.eye(3))
    with pytest.raises(ValueError, match="other kinds of tensors: adjacency real for real, sparse"):
        sweep([(0, {**other, "adjacency": dense})], model, layers=["body"], on_error="raise")


def test_threads_that_sweep_one_model_wait_for_each_other() -> None:
    model, found = network(7), []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    orders = [STEPS, STEPS[::-1], STEPS[2:]]
    threads = [Thread(target=lambda o=o: found.append(sweep(o, model, **SHORT))) for o in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(history) for history in found) == [3, 5, 5]
    for entry in (entry for history in found for entry in history.entries):
        assert entry.weights == next(e for e in HISTORY.entries if e.step == entry.step).weights
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_labels_of_a_sweep_may_be_strings_and_concepts() -> None:
    x, y = rows()
    words = [f"class {int(v)}" for v in y]
    history = cxp.probe_checkpoints(network(7), STEPS[:2], x, {"a": words, "b": y}, **SETTINGS)
    assert history[0]["4/a"].classes == ("class 0", "class 1", "class 2")
    assert history[3]["4/b"].loss == pytest.approx(history[3]["4/a"].loss, rel=1e-6)
    torch.testing.assert_close(history[3]["4/b"].weights, history[3]["4/a"].weights)
