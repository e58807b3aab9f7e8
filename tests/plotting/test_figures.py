"""Figures of probes and of histories draw what the tables have."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from convexprobe import ProbeHistory, ProbeSet, fit_probes, plot_errors, probe_checkpoints
from tests.probes.sets import DATA, small_set
from tests.tiny import checkpoints, network, rows, sweep

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


X = np.random.default_rng(0).standard_normal((90, 4))
CONCEPTS = {"a/b": (X[:, 0] > 0).astype(int), "size": (X[:, 1] + X[:, 2] > 0).astype(int)}


def probes_of(layers: int) -> ProbeSet:
    return fit_probes({f"block {i}": X * (i + 1) for i in range(layers)}, CONCEPTS, l2=1e-1)


def curves(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The points of every line by its name."""
    return {
        str(line.get_label()): (list(map(float, line.get_xdata())), list(line.get_ydata()))
        for line in ax.lines
    }


def test_every_concept_has_a_curve_over_the_layers() -> None:
    probes = probes_of(3)
    scores = probes.evaluate({f"block {i}": X * (i + 1) for i in range(3)}, CONCEPTS)
    for ax, errors in (
        (probes.plot(), {n: p.train_error for n, p in probes.items()}),
        (probes.plot(scores), {n: s.error for n, s in scores.items()}),
        (probes.plot(dict(scores)), {n: s.error for n, s in scores.items()}),
    ):
        assert [t.get_text() for t in ax.get_xticklabels()] == ["block 0", "block 1", "block 2"]
        assert ax.get_legend() is not None and list(curves(ax)) == ["a/b", "size"]
        for concept, (at, drawn) in curves(ax).items():
            assert at == [0, 1, 2]
            np.testing.assert_allclose(
                drawn, [100 * errors[f"block {i}/{concept}"] for i in range(3)]
            )
    matplotlib.pyplot.close("all")


def test_networks_are_compared_over_relative_depth() -> None:
    small, large = probes_of(3), probes_of(5)
    ax = small.plot(label="small", relative_depth=True)
    assert large.plot(ax=ax, label="large", relative_depth=True) is ax
    drawn = curves(ax)
    assert list(drawn) == ["small, a/b", "small, size", "large, a/b", "large, size"]
    assert drawn["small, size"][0] == [0, 0.5, 1] and drawn["large, size"][0][1] == 0.25
    assert len(ax.get_legend().get_texts()) == 4 and ax.get_xlabel() == "relative depth"
    top = max(y for _, values in drawn.values() for y in values)
    assert ax.get_ylim()[1] >= top
    one = {"tiny": {"only": 0.5}, "huge": {f"{i}": 0.1 for i in range(100)}, "": {"x": np.inf}}
    ax = plot_errors(one, relative_depth=True)
    assert curves(ax)["tiny"][0] == [1] and len(ax.get_legend().get_texts()) == 2
    ax.figure.canvas.draw()
    with pytest.raises(TypeError, match="label: expected a string, found 3"):
        small.plot(label=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="relative_depth: expected"):
        small.plot(relative_depth="yes")  # type: ignore[arg-type]
    matplotlib.pyplot.close("all")


def test_a_history_of_concepts_draws_one_or_all(tmp_path: Path) -> None:
    x, y = rows()
    labels = {"class": y, "sign": (x[:, 0] > 0).long()}
    history = probe_checkpoints(
        network(), STEPS[:3], x, labels, test=(x, labels), l2=1e-2, layers=["0", "4"],
        progress=False,
    )  # fmt: skip
    ax = history.plot_step(3)
    assert list(curves(ax)) == ["class", "sign"]
    expected = [100 * r.test_error for r in history.entries[1].layers if r.concept == "sign"]
    np.testing.assert_allclose(curves(ax)["sign"][1], expected)
    ax = history.plot_layers("test_auroc")
    assert len(ax.lines) == 4 and ax.get_ylabel() == "test AUROC"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["class", "sign"]
    assert len({line.get_color() for line in ax.lines}) == 2
    ax = history.plot_layers(concept="sign")
    assert list(curves(ax)) == ["0", "4"]
    np.testing.assert_allclose(
        curves(ax)["4"][1], [100 * e.layers[3].test_error for e in history.entries]
    )
    ax = history.plot_heatmap("test_balanced_accuracy")
    assert ax.figure.axes[1].get_ylabel() == "balanced test accuracy (%)"
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["0/class", "4/class", "0/sign", "4/sign"]
    names = [t.get_text() for t in history.plot_heatmap(concept="sign").get_yticklabels()]
    assert names == ["0", "4"]
    for concept in (None, "sign"):
        history.animate(tmp_path / f"{concept}.gif", concept=concept)
    for draw in (history.plot_layers, history.plot_heatmap):
        with pytest.raises(ValueError, match="concept: expected one of class, sign"):
            draw(concept="size")
    with pytest.raises(ValueError, match="concept: expected one of"):
        history.animate(tmp_path / "movie.gif", concept="size")
    matplotlib.pyplot.close("all")


def test_the_values_of_two_curves_do_not_cover_each_other() -> None:
    before = {"input": 0.023, "conv": 0.023, "pool": 0.017, "fc": 0.094, "logits": 0.31}
    after = {"input": 0.023, "conv": 0.028, "pool": 0.018, "fc": 0.017, "logits": 0.0}
    ax = plot_errors({"before": before, "after": after})
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.get_window_extent()
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    three = plot_errors({"before": before, "after": after, "later": after})
    assert not three.texts
    matplotlib.pyplot.close("all")


def test_axes_of_steps_end_where_the_steps_end() -> None:
    assert HISTORY.plot_layers().get_xlim() == (0, 12)
    assert HISTORY.plot_heatmap().get_xlim() == (0, 12)
    matplotlib.pyplot.close("all")


def test_nothing_of_the_curves_by_step_is_cut_off() -> None:
    ax = HISTORY.plot_layers()
    assert not any(line.get_clip_on() for line in ax.lines)  # points on the frame stay whole
    ax.figure.canvas.draw()
    figure, legend = ax.figure.bbox, ax.get_legend().get_window_extent()
    assert figure.contains(*legend.min) and figure.contains(*legend.max)
    _, mine = matplotlib.pyplot.subplots()
    HISTORY.plot_layers(ax=mine)  # a figure with no room beside its axes
    mine.figure.canvas.draw()
    frame, legend = mine.get_window_extent(), mine.get_legend().get_window_extent()
    assert frame.contains(*legend.min) and frame.contains(*legend.max)
    matplotlib.pyplot.close("all")
