"""The report: one valid page that asks nothing of a network, whatever the names in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import convexprobe as cxp
from convexprobe.report.charts import Axis, Curve, heat_map, line_chart, number_axis
from tests.pages import Page
from tests.probes.sets import DATA, small_set
from tests.tiny import SETTINGS, checkpoints, network, rows, sweep

HOSTILE = "</script><script>alert(1)</script><img src=http://a.b/c onerror=x>"
MOST = 3_000_000


def read(path: Path) -> Page:
    text = path.read_text()
    assert len(text.encode()) < MOST
    # addresses may stand in plain text, such as a hostile name; nothing may follow them
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.count("main") == page.count("h1") == 1
    policy = [a.get("content") or "" for t, a in page.elements if t == "meta"]
    assert any(p.startswith("default-src 'none'") for p in policy)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    svgs = [a for t, a in page.elements if t == "svg"]
    assert svgs and page.count("desc") == len(svgs) == page.count("figcaption")
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for _, attributes in page.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= ids
    return page


def test_the_report_of_probes_has_their_numbers_figures_and_settings(tmp_path: Path) -> None:
    probes = small_set()
    layers = {"conv1": DATA.x, "out": 3 * DATA.x}
    scores = probes.evaluate(layers, DATA.y, bootstrap=20)
    cxp.write_report(probes, tmp_path / "a.html", scores=scores, settings={"fit": {"l2": [1, 2]}})
    page = read(tmp_path / "a.html")
    for cell in (cell for row in probes.cells() for cell in row):
        assert cell in page.text
    low, high = scores["out"].interval("auroc")
    assert f"({low:.4f} to {high:.4f})" in page.text
    assert "[1, 2]" in page.text and cxp.__version__ in page.text and "fit_probes" in page.text
    assert "3 of 4 probes are certified" in page.text
    assert {a.get("id") for t, a in page.elements if t == "figure"} == {
        "errors", "information", "gaps", "paths",
    }  # fmt: skip


def test_names_cannot_leave_their_places(tmp_path: Path) -> None:
    probes = cxp.fit_probes({HOSTILE: DATA.x, "b" * 10**6: DATA.x}, DATA.y, l2=1e-2)
    settings = {HOSTILE: {HOSTILE: HOSTILE}}
    cxp.write_report(probes, tmp_path / "a.html", settings=settings, repeat=HOSTILE)
    page = read(tmp_path / "a.html")
    assert page.count("script") == 1 and page.count("img") == 0 and HOSTILE in page.text


def test_many_probes_stay_below_the_size_of_a_mail(tmp_path: Path) -> None:
    (probe,) = cxp.fit_probes(DATA.x, DATA.y, l2=[1e-2, 1e-1]).values()
    places = [(f"block.{i}/{c}", str(c)) for i in range(50) for c in range(100)]
    probes = cxp.ProbeSet({name: replace(probe, concept=c) for name, c in places})
    cxp.write_report(probes, tmp_path / "a.html")
    assert "2000 further rows are not shown" in read(tmp_path / "a.html").text


def test_concepts_are_curves_over_the_same_layers(tmp_path: Path) -> None:
    labels = {"even": DATA.y % 2, "zero": DATA.y == 0}
    cxp.write_report(cxp.fit_probes({"a": DATA.x, "b": DATA.x}, labels, l2=1e-2), tmp_path / "a")
    page = read(tmp_path / "a")
    assert page.text.count("even") >= 5 and page.count("li") == 6


def test_the_report_of_a_history_has_every_step_in_table_and_slider(tmp_path: Path) -> None:
    history = sweep(checkpoints(4))
    cxp.write_report(history, tmp_path / "a.html")
    page = read(tmp_path / "a.html")
    for entry in history.entries:
        for cell in (cell for row in entry.cells() for cell in row):
            assert cell in page.text
    movie = movie_of(tmp_path / "a.html")
    assert movie["steps"] == list(history)
    for entry, values in zip(history.entries, movie["series"]["test_error"], strict=True):
        assert values == pytest.approx([r.test_error for r in entry.layers], rel=1e-4)
    (slider,) = (a for t, a in page.elements if t == "input")
    assert (slider["min"], slider["max"]) == ("0", "3")


def movie_of(path: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="movie-data">(.*?)</script>', path.read_text()
    )
    assert found is not None
    return json.loads(found[1])


def test_the_report_of_a_history_with_concepts_has_a_curve_a_concept(tmp_path: Path) -> None:
    def both(labels: Tensor) -> dict[str, Tensor]:
        return {"low": (labels == 0).long(), HOSTILE: (labels == 2).long()}

    (x, y), (test_x, test_y) = rows(), rows(60, seed=2)
    history = cxp.probe_checkpoints(
        network(7), checkpoints(3), x, both(y), test=(test_x, both(test_y)), **SETTINGS
    )
    cxp.write_report(history, tmp_path / "a.html")
    page, movie = read(tmp_path / "a.html"), movie_of(tmp_path / "a.html")
    keys = [f"{kind}/{c}" for kind in ("test_error", "information") for c in ("low", HOSTILE)]
    assert list(movie["series"]) == keys
    assert [a["data-key"] for t, a in page.elements if "data-key" in a] == keys
    for key in keys[:2]:
        for entry, values in zip(history.entries, movie["series"][key], strict=True):
            wanted = [r.test_error for r in entry.layers if key == f"test_error/{r.concept}"]
            assert values == pytest.approx(wanted, rel=1e-4)
    figures = [a.get("id") for t, a in page.elements if t == "figure"]
    assert figures == ["heat-map", "movie-error", "movie-information", "curves-0", "curves-1"]
    layers = len(history.layers) // 2
    assert f"{layers} layers, 2 concepts" in page.text


def test_the_report_of_a_history_has_the_scores_of_its_last_step(tmp_path: Path) -> None:
    history = sweep(checkpoints(2))
    cxp.write_report(history, tmp_path / "a.html")
    text = read(tmp_path / "a.html").text
    assert "Measures on held-out rows at step 3" in text
    for cell in (cell for row in history.entries[-1].scores.cells() for cell in row):
        assert cell in text
    cxp.write_report(sweep(checkpoints(2), test=None), tmp_path / "b.html")
    assert "Measures on held-out rows" not in read(tmp_path / "b.html").text


def test_a_long_history_of_many_layers_stays_small(tmp_path: Path) -> None:
    (entry,) = sweep(checkpoints(1)).entries
    layers = tuple(replace(entry.layers[0], layer=f"layer {i}") for i in range(300))
    rng = np.random.default_rng(0)
    entries = [
        replace(entry, step=10 * s, layers=tuple(
            replace(r, test=None, train_error=float(e))
            for r, e in zip(layers, rng.random(300), strict=True)
        ))
        for s in range(200)
    ]  # fmt: skip
    cxp.write_report(cxp.ProbeHistory(entries, {}), tmp_path / "a.html")
    page = read(tmp_path / "a.html")
    assert "Figures show 50 of 200 steps" in page.text and "1990" in page.text


def test_what_cannot_be_reported_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path, probes = tmp_path / "a.html", small_set()
    with pytest.raises(TypeError, match="results: expected probes or a history"):
        cxp.write_report({}, path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one probe"):
        cxp.write_report(cxp.ProbeSet({}), path)
    with pytest.raises(ValueError, match="at least one checkpoint"):
        cxp.write_report(cxp.ProbeHistory([], {}), path)
    with pytest.raises(ValueError, match="there is no probe 'other'"):
        cxp.write_report(probes, path, scores={"other": {}})
    assert not path.exists()


def test_a_curve_goes_through_its_points_and_breaks_where_there_is_none() -> None:
    axis = Axis(0.0, 3.0, [(0.0, "0"), (3.0, "3")])
    values = [1.0, None, float("inf"), 2.0]
    page = Page(line_chart("i", "t", "w", [Curve("c", [0, 1, 2, 3], values)], axis, unit="u"))
    (line,) = (a["d"] for t, a in page.elements if a.get("class") == "line")
    points = re.findall(r"M([\d.]+) ([\d.]+)", line or "")
    assert len(points) == 2 and "L" not in (line or "")
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in points)
    bottom = 18 + 220  # of the chart: zero is there
    assert (x0, x1) == (64, 744) and (bottom - y1) == pytest.approx(2 * (bottom - y0), abs=0.2)


def test_a_heat_map_fills_its_area_with_one_colour_a_level() -> None:
    values = [[0.0, 1.0], [0.5, None]]
    html = heat_map("i", "t", "w", [0, 10], ["a", "b"], values, unit="%", factor=100)
    fills = [a["fill"] for t, a in Page(html).elements if "fill" in a]
    assert len(fills) == len(set(fills)) == 3 and fills[0] == "#440154"


def test_the_names_of_layers_beside_a_heat_map_are_inside_its_drawing() -> None:
    for name in ("a", "encoder.layer.11", "w" * 100):
        html = heat_map("i", "t", "w", [0, 1], [name], [[0.0], [1.0]], unit="%", factor=100)
        (box,) = (a["viewbox"] for t, a in Page(html).elements if t == "svg")
        (text,) = re.findall(r'class="y" x="(\d+)"[^>]*>([^<]*)<', html)
        left = float((box or "").split()[0])
        assert left == 0 or name != "a"
        assert float(text[0]) - 7 * len(text[1]) >= left  # 12 px letters are 7 wide on average


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [0.0, 1e-9], [0, 1e6], [-3, 4]])
def test_an_axis_has_a_few_round_numbers_inside_its_ends(values: list[float]) -> None:
    axis = number_axis(values, "step")
    assert 1 <= len(axis.ticks) <= 9
    for value, _ in axis.ticks:
        assert axis.low - 1e-9 <= value <= axis.high + 1e-9
