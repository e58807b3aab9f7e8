"""How many logits a family keeps of its rows."""

from __future__ import annotations

LOGITS, MOST_LOGITS, MANY = 5e8, 4e9, 1 << 16
"""Bytes that the logits of all rows and their change along a direction may take together, if there
are at least `MANY` rows and if there are fewer.

Beyond, a line search on a sample takes their place (`solvers/line_search.py`): it is cheap where
there are many rows, and writing and reading so many logits is not. See
`docs/decisions/logits.md`.
"""

LEAST = 64 << 20
"""Bytes that they may take whatever room there is: no more than a few blocks and their buffers."""


def kept_columns(n: int, every: int, item: int, room: float, *, streamed: bool) -> int:
    """The most logits a row, `m k`, with which a family keeps those of its rows, twice.

    None of many rows that are streamed: a line search on kept logits reads the rows twice a step,
    one on a sample once.

    Args:
        n: rows of this rank.
        every: rows of all ranks.
        item: bytes of a logit.
        room: bytes that they may take.
        streamed: whether every reading brings the rows from elsewhere.
    """
    if streamed and every >= MANY:
        return 0
    most = LOGITS if every >= MANY else MOST_LOGITS
    return int(max(min(room, most), LEAST) // (2 * item * max(n, 1)))
