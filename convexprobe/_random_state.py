"""Keep the global random states of torch, NumPy and Python while somebody else's code runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """Restore the states at the end, after an error too; inside, they start from `seed`."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (not ours: kept)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 (for loaders and models that use it)
                # torch.manual_seed would also reseed a GPU that is initialised later
                torch.default_generator.manual_seed(seed)
                for gpu in gpus:
                    torch.cuda.default_generators[gpu].manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
