"""The history that a sweep returns: its table."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.tiny import checkpoints, sweep

STEPS = checkpoints(5)
HISTORY = sweep(STEPS)


def test_the_table_has_a_row_for_every_step_and_layer() -> None:
    frame = HISTORY.to_frame()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 25
    assert list(HISTORY) == [0, 3, 6, 9, 12] and HISTORY.layers == ("0", "1", "2", "3", "4")
    row = frame.loc[(6, "4")]
    probe = HISTORY[6]["4"]
    assert (row.train_error, row.loss, row.gap) == (probe.train_error, probe.loss, probe.gap)
    assert row.status == "certified" and row.extract_seconds > 0
    assert "5 checkpoints, steps 0 to 12, 5 layers" in str(HISTORY)
    assert "certified: 25 of 25" in str(HISTORY)
    with pytest.raises(KeyError, match="no step 7 among 5; the nearest is 6"):
        HISTORY[7]
