"""Figures of probes and of histories draw what the tables have."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from convexprobe import ProbeHistory, ProbeSet
from tests.probes.sets import DATA, small_set
from tests.tiny import checkpoints, sweep

matplotlib.use("Agg")


STEPS = checkpoints(5)
HISTORY = sweep(STEPS)


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
