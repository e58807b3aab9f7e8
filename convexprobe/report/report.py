"""`write_report`: probes or a training run as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from convexprobe._arguments import check_path, shown
from convexprobe._files import write_whole
from convexprobe.metrics.score import Score
from convexprobe.probes.probe_set import ProbeSet
from convexprobe.report.of_history import sections_of_history
from convexprobe.report.of_probes import sections_of_probes
from convexprobe.report.page import ending, page
from convexprobe.training.history import ProbeHistory

_REPEAT = """import convexprobe as cxp

probes = cxp.fit_probes(activations, labels, l2=...)  # the l2 of the table: the optimum is unique,
# so that any solver, start and machine finds a probe whose objective is within the two gaps"""

_REPEAT_HISTORY = """import convexprobe as cxp

history = cxp.probe_checkpoints(model, checkpoints, x, y, ...)  # with the settings below"""


def write_report(
    results: ProbeSet | ProbeHistory,
    path: str | os.PathLike[str],
    *,
    scores: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    repeat: str | None = None,
) -> None:
    """Write one HTML file that shows probes or a training run; it appears complete or not at all.

    It needs no network and no other file, stays below 3 MB, is light or dark as the reader's system
    is, and can be read on a telephone and by a screen reader. It has the error and the usable
    information by layer with their gaps and intervals, the penalties that were tried, all numbers
    in a table that can be sorted, the settings, and how to repeat it. Of a training run it has a
    heat map, and a slider over the steps.

    Args:
        results: what `fit_probes` or `probe_checkpoints` returned, or what was loaded.
        path: the file; one that is there is replaced.
        scores: of probes, what `ProbeSet.evaluate` returned, or `Score.to_row()` by probe.
        settings: further settings to show, by name; values that JSON knows.
        repeat: the command or code that makes the results again.

    Raises:
        TypeError: results of another type.
        ValueError: scores of a history, which has its own, or of a probe that is not there; no
            probes or checkpoints.
        OSError: the file cannot be written.
    """
    target = check_path("path", path)
    if isinstance(results, ProbeHistory):
        if scores is not None:
            raise ValueError("scores: expected none for a history, which has its own; omit them")
        title, summary, sections = sections_of_history(results)
        known, again = {**results.settings, **(settings or {})}, _REPEAT_HISTORY
    elif isinstance(results, ProbeSet):
        rows = {n: s.to_row() if isinstance(s, Score) else s for n, s in (scores or {}).items()}
        if other := [name for name in rows if name not in results]:
            raise ValueError(f"scores: there is no probe {other[0]!r}, found {list(results)[:8]}")
        title, summary, sections = sections_of_probes(results, rows)
        known, again = dict(settings or {}), _REPEAT
    else:
        raise TypeError(f"results: expected probes or a history, found {shown(results)}")
    html = page(title, summary, [*sections, *ending(known, again if repeat is None else repeat)])
    write_whole(target, html.encode())
