"""Sweeps as a whole, and the history they return: tables, figures, movies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.animation import FFMpegWriter
from PIL import Image
from tiny import SETTINGS, bits, checkpoints, network, rows, sweep

import convexprobe as cxp
from convexprobe import ProbeHistory
from convexprobe.records import Entry, LayerResult

matplotlib.use("Agg")

STEPS = checkpoints(5)
HISTORY = sweep(STEPS)


def made_up(layers: int, steps: int) -> ProbeHistory:
    """A ripple from left to right over many layers, without probes."""
    entries = []
    for t in range(steps):
        depth = np.arange(layers) / layers
        error = 0.1 + 0.8 / (1 + np.exp(-12 * (depth - 1.4 * t / steps))) * (1 - 0.3 * depth)
        row = [
            LayerResult(f"fc{i}", float(e), None, 2.3 * float(e), None, 1e-3, 4.0, 0.1, "zero",
                        "certified", 1e-3) for i, e in enumerate(error)
        ]  # fmt: skip
        entries.append(Entry(10 * t, f"step {t}", str(t), None, "", 1.0, 0.3, 0.1, tuple(row)))
    return ProbeHistory(entries, {})


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


def test_the_table_has_a_row_for_every_step_and_layer() -> None:
    frame = HISTORY.to_frame()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 25
    assert list(HISTORY) == [0, 3, 6, 9, 12] and HISTORY.layers == ("0", "1", "2", "3", "4")
    row = frame.loc[(6, "4")]
    probe = HISTORY[6]["4"]
    assert (row.train_error, row.loss, row.gap) == (probe.train_error, probe.loss, probe.gap)
    assert row.status == "certified" and row.extract_seconds > 0
    assert "5 checkpoints, steps 0 to 12, 5 layers" in str(HISTORY)
    assert "certified: 25 of 25" in str(HISTORY)
    with pytest.raises(KeyError, match="no step 7 among 5; the nearest is 6"):
        HISTORY[7]


def test_other_kinds_of_data_give_the_same() -> None:
    x, y = rows()
    loader = [(x[i : i + 250], y[i : i + 250]) for i in range(0, 150, 250)]
    history = cxp.probe_checkpoints(network(7), dict(STEPS), loader, test=[rows(60, seed=2)],
                                    **SETTINGS)  # fmt: skip
    assert bits(history) == bits(HISTORY)
    held = tuple(a.numpy() for a in rows(60, seed=2))
    arrays = cxp.probe_checkpoints(network(7), STEPS, x.numpy(), y.numpy(), test=held, **SETTINGS)
    assert bits(arrays) == bits(HISTORY)


def test_figures_draw_what_the_table_has() -> None:
    ax = HISTORY.plot_step(6)
    errors = [100 * r.test_error for r in HISTORY.entries[2].layers]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), errors)
    assert ax.get_title() == "step 6" and "test error" in ax.get_ylabel()
    ax = HISTORY.plot_layers("test_loss")
    assert len(ax.lines) == 5 and "nats" in ax.get_ylabel()
    np.testing.assert_allclose(
        ax.lines[4].get_ydata(), [e.layers[4].test_loss for e in HISTORY.entries]
    )
    mesh = HISTORY.plot_heatmap().collections[0]
    assert mesh.get_array().shape == (5, 5)
    assert mesh.get_array()[4, 2] == pytest.approx(errors[4])
    without = sweep(STEPS[:1], test=None)
    assert "training error" in without.plot_heatmap().figure.axes[1].get_ylabel()
    with pytest.raises(ValueError, match="without held-out rows"):
        without.plot_layers("test_error")
    with pytest.raises(ValueError, match="column: expected one of"):
        HISTORY.plot_layers("gap")
    with pytest.raises(ValueError, match="no checkpoints"):
        ProbeHistory([], {}).plot_layers()
    matplotlib.pyplot.close("all")


def test_a_movie_of_many_layers_is_small_and_its_axes_stand_still(tmp_path: Path) -> None:
    made_up(129, 30).animate(tmp_path / "movie.gif", fps=10)
    assert (tmp_path / "movie.gif").stat().st_size < 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["movie.gif"]
    with Image.open(tmp_path / "movie.gif") as film:
        assert film.n_frames == 30 and film.size == (576, 320)
        assert abs(film.info["duration"] - 100) <= 10
        frames = []
        for i in (0, 29):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB"), dtype=int))
    changed = np.abs(frames[0] - frames[1]).max(axis=2) > 60
    assert changed.any() and not changed[:, :40].any()  # the ticks of the vertical axis
    with pytest.raises(ValueError, match=r"a .gif or an .mp4"):
        HISTORY.animate(tmp_path / "movie.avi")


@pytest.mark.skipif(FFMpegWriter.isAvailable(), reason="ffmpeg is installed")
def test_without_ffmpeg_an_mp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="needs ffmpeg"):
        HISTORY.animate(tmp_path / "movie.mp4")
    assert not list(tmp_path.iterdir())


def test_progress_counts_checkpoints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep(STEPS, progress=True, out=tmp_path)
    shown = capsys.readouterr().err
    assert "5/5" in shown and "step 12" in shown and "extract" not in shown
    sweep(STEPS, progress=True, out=tmp_path)
    assert "5/5" in capsys.readouterr().err
