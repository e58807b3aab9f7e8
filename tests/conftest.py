"""What every test shares: one thread, the same examples in every run, each array library."""

from __future__ import annotations

from types import ModuleType

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("fixed")

LIBRARIES: dict[str, ModuleType] = {
    "numpy": np,
    "torch": torch,
    "array_api_strict": array_api_strict,
}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    """Each array library in turn."""
    return LIBRARIES[request.param]
