"""Movies of a history."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from PIL import Image

from convexprobe import ProbeHistory
from convexprobe.solvers.solution import Status
from convexprobe.training.results import Entry, LayerResult

matplotlib.use("Agg")


def made_up(layers: int, steps: int) -> ProbeHistory:
    """A ripple from left to right over many layers, without probes."""
    entries = []
    for t in range(steps):
        depth = np.arange(layers) / layers
        error = 0.1 + 0.8 / (1 + np.exp(-12 * (depth - 1.4 * t / steps))) * (1 - 0.3 * depth)
        row = [
            LayerResult(layer=f"fc{i}", l2=1e-3, loss=2.3 * e, objective=2.4 * e, gap=1e-3,
                        label_entropy=2.3, train_error=e, status=Status.CERTIFIED, passes=4.0,
                        seconds=0.1,
                        concept=None, test=None) for i, e in enumerate(error.tolist())
        ]  # fmt: skip
        entries.append(Entry(10 * t, f"step {t}", str(t), None, "", 1.0, 0.3, 0.1, tuple(row)))
    return ProbeHistory(entries, {})


def test_a_movie_of_many_layers_is_small_and_its_axes_stand_still(tmp_path: Path) -> None:
    made_up(129, 30).animate(tmp_path / "movie.gif", fps=10)
    assert (tmp_path / "movie.gif").stat().st_size < 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["movie.gif"]
    with Image.open(tmp_path / "movie.gif") as film:
        assert film.n_frames == 30 and film.size == (576, 320)
        assert abs(film.info["duration"] - 100) <= 10
        frames = []
        for i in (0, 29):
            film.seek(i)
            frames.append(np.asarray(film.convert("RGB"), dtype=int))
    changed = np.abs(frames[0] - frames[1]).max(axis=2) > 60
    assert changed.any() and not changed[:, :40].any()  # the ticks of the vertical axis
    with pytest.raises(ValueError, match=r"a .gif or an .mp4"):
        made_up(3, 2).animate(tmp_path / "movie.avi")


@pytest.mark.skipif(FFMpegWriter.isAvailable(), reason="ffmpeg is installed")
def test_without_ffmpeg_an_mp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="needs ffmpeg"):
        made_up(3, 2).animate(tmp_path / "movie.mp4")
    assert not list(tmp_path.iterdir())
