"""The page around the sections of a report: one file, which asks nothing of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from convexprobe._tables import html_table
from convexprobe.report.versions import versions

# no request leaves the page, whatever a name in it contains
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

MOST_ROWS = 3000
"""Rows of a table at most; a page stays below 3 MB."""


def page(title: str, summary: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """A complete page.

    Args:
        title: plain text.
        summary: plain sentences at its top.
        sections: heading, as plain text, and HTML of each; an empty one is left out.
    """
    css, js = (files("convexprobe.report").joinpath(f"page.{kind}").read_text("utf-8")
               for kind in ("css", "js"))  # fmt: skip
    body = "".join(
        f'<section aria-labelledby="section-{i}"><h2 id="section-{i}">{escape(heading)}</h2>\n'
        f"{content}</section>\n"
        for i, (heading, content) in enumerate(sections)
        if content
    )
    lead = "".join(f"<p>{escape(sentence)}</p>" for sentence in summary)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<div class="summary">{lead}</div>\n{body}</main>\n'
        f"<script>\n{js}</script>\n</body>\n</html>\n"
    )


def table(
    rows: Sequence[Sequence[str]], caption: str, left: Sequence[int], *, kind: str = "sortable"
) -> str:
    """A table that can be scrolled to the side, and sorted; of a long one the first rows."""
    shown = rows[: MOST_ROWS + 1]
    left_out = len(rows) - len(shown)
    note = f'<p class="note">{left_out} further rows are not shown.</p>' if left_out else ""
    inside = html_table(shown, left=left, caption=caption)
    inside = inside.replace("<table>", f'<table class="{kind}">', 1)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"{inside}</div>{note}\n"
    )


def notes(*sentences: str) -> str:
    """Paragraphs of plain text."""
    return "".join(f"<p>{escape(sentence)}</p>\n" for sentence in sentences)


def code(text: str) -> str:
    """A block of code."""
    return f"<pre><code>{escape(text)}</code></pre>\n"


def data(ident: str, value: Any) -> str:
    """Values for the page's script, as JSON, of which nothing can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{ident}">{text}</script>\n'


def ending(settings: Mapping[str, Any], repeat: str) -> list[tuple[str, str]]:
    """The sections at the end: settings, versions and how to repeat it."""
    rows = [["setting", "value"]]
    for name, value in settings.items():
        each = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[f"{name} {key}".strip(), _written(item)] for key, item in each]
    known = [["software", "version"], *map(list, versions().items())]
    return [
        ("How to repeat it", code(repeat)),
        (
            "Settings",
            table(rows, "what was asked for", (0, 1), kind="settings") if rows[1:] else "",
        ),
        ("Versions", table(known, "what wrote this page", (0, 1), kind="settings")),
    ]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
