"""The progress bar of every long loop of the package."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str | None = None,
    show: bool | None = None,
) -> tqdm:
    """A tqdm bar on stderr.

    Args:
        iterable: what to iterate over; None for a bar that is updated by hand.
        total: the number of steps; None takes `len(iterable)` where it has one.
        desc: the words in front of the bar.
        show: None shows the bar only if stderr is a terminal, so that logs stay clean.
    """
    # tqdm's own `disable=None` means "unless the file is a terminal"
    disable = None if show is None else not show
    return tqdm(iterable, total=total, desc=desc, file=sys.stderr, disable=disable)
