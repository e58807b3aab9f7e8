"""Report the results of `benchmarks.run`: a page, a figure, and a summary printed as Markdown.

    python -m benchmarks.report --out out

Writes `OUT/benchmark.html`, which needs no network to open, and `OUT/headline.png`.
"""

from __future__ import annotations

import argparse
import inspect
from base64 import b64encode
from html import escape
from pathlib import Path

import benchmarks.run
from benchmarks.harness import figures, modules
from benchmarks.harness.summary import (
    Runs,
    by_run,
    cases,
    markdown,
    peer_names,
    reached,
    reference,
    verdicts,
    word,
)
from benchmarks.harness.table import Row, Table
from benchmarks.harness.targets import OURS

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: auto; padding: 1rem;
       color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 }
table { border-collapse: collapse; font-size: .85rem }
th, td { padding: .2rem .5rem; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd }
td.n { text-align: right; white-space: nowrap }
td.best { font-weight: bold }
.wide { overflow-x: auto }
img { max-width: 100%; height: auto }
.met { color: #06702c } .missed { color: #b00020 }
pre { white-space: pre-wrap; font-size: .85rem }
"""


def image(png: bytes, text: str) -> str:
    """Return an HTML image with the PNG embedded in it."""
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def table(head: list[str], body: list[list[str]]) -> str:
    """Return an HTML table; all cells are HTML already, those of `body` with their `<td>`."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    rows = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def targets(runs: Runs) -> str:
    """Return a table of our targets, what was measured, and whether each is met."""
    body = []
    for v in verdicts(runs):
        cells = [v.target, v.measured]
        misses = "".join(f"<li>{escape(miss)}</li>" for miss in v.misses)
        more = f"<details><summary>misses</summary><ul>{misses}</ul></details>" if misses else ""
        state = f'<td class="{word(v.met)}">{word(v.met)}{more}</td>'
        body.append([f"<td>{escape(cell)}</td>" for cell in cells] + [state])
    return table(["target", "measured", ""], body)


def times(runs: Runs, target: float) -> str:
    """Return a table of everybody's seconds to the target in every case."""
    columns, body = cases(runs), []
    for name in peer_names(runs):
        cells = [f"<td>{escape(name)}</td>"]
        for case in columns:
            if (case, name) not in runs:
                cells.append("<td></td>")
                continue
            spent = reached(runs[case, name], target)
            seconds = [reached(r, target).seconds for (c, _), r in runs.items() if c == case]
            best = " best" if spent.seconds == min(seconds) < float("inf") else ""
            cells.append(f'<td class="n{best}">{escape(spent.text)}</td>')
        body.append(cells)
    return table(["", *map(escape, columns)], body)


def missing(runs: Runs) -> str:
    """Return a table of the peers that did not run, on which cases, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (case, name), run in runs.items():
        if run[-1].status not in ("arrived", "ended", "out of time"):
            reasons.setdefault((name, run[-1].status), []).append(case)
    total = len(cases(runs))
    body = [
        [f"<td>{escape(name)}</td><td>{escape(status)}</td>"
         f"<td>{'everywhere' if len(where) == total else escape(', '.join(where))}</td>"]
        for (name, status), where in reasons.items()
    ]  # fmt: skip
    return table(["peer", "why", "cases"], body) if body else "<p>Everybody ran everywhere.</p>"


def case_section(runs: Runs, case: str, names: list[str]) -> str:
    """Return a case's section: its shape and its curves."""
    row: Row = next(run[0] for (c, _), run in runs.items() if c == case)
    shape = f"{row.n} rows, {row.d} features, {row.k} classes, {row.m} penalties"
    png = figures.curves(runs, case, names)
    text = f"Gap against passes and seconds, {case}"
    return f"<h3>{escape(case)}</h3><p>{shape}</p>\n{image(png, text)}"


def reconciled() -> str:
    """Return each peer file's docstring, which says how its objective is scaled to ours."""
    parts = []
    for file in modules("benchmarks.peers"):
        title = file.__name__.rsplit(".", 1)[-1]
        parts.append(f"<h3>{escape(title)}</h3><pre>{escape(inspect.getdoc(file) or '')}</pre>")
    return "\n".join(parts)


def environment(rows: list[Row]) -> str:
    """Return a list of the machines, versions and dates of the runs."""
    dates_of: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        dates_of.setdefault((row.machine, row.versions), []).append(row.date)
    items = (
        f"<li>{escape(machine)}; {escape(versions)}; {min(dates)} to {max(dates)}</li>"
        for (machine, versions), dates in dates_of.items()
    )
    return f"<ul>{''.join(items)}</ul>"


def page(rows: list[Row]) -> str:
    """Return the whole report as HTML."""
    runs = by_run(rows)
    names = peer_names(runs)
    sections = "\n".join(case_section(runs, case, names) for case in cases(runs))
    how = escape(inspect.getdoc(benchmarks.run) or "")
    ours = escape(reference(runs).removeprefix(OURS))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>convexprobe: benchmark</title>
<style>{CSS}</style>
</head>
<body>
<h1>convexprobe: benchmark</h1>
<p>{len(cases(runs))} cases, {len(names)} peers; our reference solver is <b>{ours}</b>.</p>
<h2>Targets</h2>
{targets(runs)}
<h2>Performance profiles</h2>
<p>The fraction of cases that a peer solves within a factor of the best peer's time or passes.</p>
{image(figures.profiles(runs), "Performance profiles")}
<h2>Seconds to 1e-3</h2>
<p>&gt;: cut off after that time. stalled: stopped by itself above the target. Each time is that of
the peer's faster precision.</p>
{times(runs, 1e-3)}
<h2>Seconds to 1e-5</h2>
{times(runs, 1e-5)}
<h2>Not run</h2>
{missing(runs)}
<h2>Cases</h2>
{sections}
<h2>Machine and versions</h2>
{environment(rows)}
<h2>How it is measured</h2>
<pre>{how}</pre>
<h2>One objective</h2>
{reconciled()}
</body>
</html>
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    out = parser.parse_args(arguments).out
    rows = Table(out / "benchmark.csv").rows
    if not rows:
        raise SystemExit(f"{out / 'benchmark.csv'}: no results; run python -m benchmarks.run first")
    runs = by_run(rows)
    (out / "benchmark.html").write_text(page(rows))
    (out / "headline.png").write_bytes(figures.headline(runs, reference(runs)))
    print(markdown(runs))


if __name__ == "__main__":
    main()
