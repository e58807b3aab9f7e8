"""Rows of cells as a table: aligned text, or HTML for notebooks and reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_LONGEST = 120
"""Characters of a cell that HTML shows; a name that is longer is cut in its middle."""


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> str:
    """One line a row, columns to the right except those in `left`, by number."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def html_table(
    rows: Sequence[Sequence[str]], *, left: Sequence[int] = (), caption: str = ""
) -> str:
    """The same as an HTML table; every cell is escaped.

    The first row holds the headers of the columns, the first cell of each other row its header.

    Args:
        rows: cells; rows of the same length.
        left: numbers of the columns that are words; the others are numbers, to the right.
        caption: what the table shows, in plain text.
    """

    def cells(row: Sequence[str], first: str, tag: str, scope: str) -> str:
        out = []
        for i, cell in enumerate(row):
            name, of = (first, scope) if i == 0 else (tag, "col")
            head = f' scope="{of}"' if name == "th" else ""
            side = "left" if i in left else "right"
            out.append(f'<{name}{head} style="text-align:{side}">{shown_text(cell)}</{name}>')
        return f"<tr>{''.join(out)}</tr>"

    head, *body = rows
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    lines = "\n".join(cells(row, "th", "td", "row") for row in body)
    return (
        f"<table>{title}<thead>{cells(head, 'th', 'th', 'col')}</thead>\n"
        f"<tbody>{lines}</tbody></table>"
    )


def shown_text(text: str) -> str:
    """Text escaped for HTML, cut in its middle if it is long."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}…{text[-half:]}"
    return escape(text)


def html_lines(text: str) -> str:
    """Plain text escaped for HTML, with its line breaks and spaces kept."""
    return f"<pre>{escape(text)}</pre>" if text else ""
