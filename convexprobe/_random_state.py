"""Keep the global random states of torch, NumPy and Python while somebody else's code runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """Restore the states at the end, after an error too; inside, they start from `seed`."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (not ours: kept)
    accelerator = torch.accelerator.current_accelerator()
    kind = "cpu" if accelerator is None else accelerator.type
    module: Any = torch.get_device_module(kind)
    ready = getattr(module, "is_initialized", None) or module.is_available
    used = accelerator is not None and ready()
    with torch.random.fork_rng(range(module.device_count()) if used else (), device_type=kind):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 (for loaders and models that use it)
                # torch.manual_seed would also reseed a device that is initialised later
                torch.default_generator.manual_seed(seed)
                if used:
                    (getattr(module, "manual_seed_all", None) or module.manual_seed)(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
