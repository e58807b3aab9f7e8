"""Tables as text and as HTML, and what notebooks show of results."""

from __future__ import annotations

import numpy as np
import pytest

import convexprobe as cxp
from convexprobe._tables import aligned, html_table
from tests.pages import Page
from tests.tiny import checkpoints, sweep

HOSTILE = "<script>alert(1)</script>"


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    table = aligned([["a", "bb"], ["ccc", "d"]], left=(0,))
    assert table == "a    bb\nccc   d"


def test_cells_are_escaped_and_headers_have_a_scope() -> None:
    page = Page(html_table([["layer", "n"], [HOSTILE, '"&']], left=(0,), caption="a < b"))
    assert page.count("script") == 0 and HOSTILE in page.text and "a < b" in page.text
    scopes = [a["scope"] for tag, a in page.elements if tag == "th"]
    assert scopes == ["col", "col", "row"]


def test_a_long_name_is_cut_in_its_middle() -> None:
    text = Page(html_table([["layer"], ["a" * 10**6 + "b"]])).text
    assert len(text) < 200 and text.endswith("b") and "…" in text


@pytest.mark.parametrize("kind", ["probes", "scores", "score", "estimate", "history"])
def test_notebooks_show_the_printed_numbers_as_a_table(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((60, 4))
    y = (x[:, 0] > 0).astype(int)
    layers = {HOSTILE: x, "fc": x[:, :2]}
    probes = cxp.fit_probes(layers, y, l2=1e-2)
    scores = probes.evaluate(layers, y, bootstrap=20)
    shown = {
        "probes": probes,
        "scores": scores,
        "score": scores["fc"],
        "estimate": cxp.estimate(layers, y, l2=1e-2),
        "history": sweep(checkpoints(2)) if kind == "history" else None,
    }[kind]
    page = Page(shown._repr_html_())  # type: ignore[union-attr]
    assert page.count("table") == 1 and page.count("script") == 0
    # the layers of a history are numbers, and its columns those of the last step
    words = (
        str(shown).split() if kind != "history" else ["checkpoints,", "train_error", "certified"]
    )
    for word in words:
        assert word in page.text


def test_a_history_without_checkpoints_is_shown_as_such() -> None:
    assert "no checkpoints" in cxp.ProbeHistory([], {})._repr_html_()
