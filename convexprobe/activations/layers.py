"""What an extraction gives: the rows of each layer, and which example and token each row is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Activations(dict[str, Any]):
    """The rows `(n, d)` of layers by name, as `extract` and `open_activations` return them.

    It is a dictionary, and everything that takes one takes it. A dictionary made of it, such as
    `{"fc": activations["fc"]}`, has no `examples`.

    Attributes:
        examples: the example of each row, int64 `(n,)` on the host, counted from 0 in the loader's
            order, if rows are tokens or words; None if every row is an example. Pass them as
            `groups=`, so that no example stands on both sides of a split.
        positions: the place of each row on the axis of tokens, int64 `(n,)`, padding counted; of a
            word that of its first piece. None if every row is an example.
    """

    def __init__(
        self,
        layers: Mapping[str, Any],
        examples: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        super().__init__(layers)
        self.examples, self.positions = examples, positions
