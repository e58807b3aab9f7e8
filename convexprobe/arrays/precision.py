"""Keep a surrounding `torch.autocast` region from rounding the products of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off, on every kind of device where it is on; also a decorator."""
    with ExitStack() as stack:
        accelerator = torch.accelerator.current_accelerator()
        for device in ("cpu", *([] if accelerator is None else [accelerator.type])):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
