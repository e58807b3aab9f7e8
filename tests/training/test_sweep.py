"""Sweeps over checkpoints as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import convexprobe as cxp
from convexprobe import ProbeHistory
from tests.tiny import SETTINGS, bits, checkpoints, network, rows, sweep

STEPS = checkpoints(5)
HISTORY = sweep(STEPS)


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

    assert passes(HISTORY) < passes(cold)  # on 150 rows, choosing a start costs as much


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
